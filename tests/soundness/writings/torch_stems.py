"""The patch stem in other writings: (images, Conv2d) to the stream (b, s, d)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Stem = Callable[[Tensor, nn.Conv2d], Tensor]


def by_unfold(x: Tensor, stem: nn.Conv2d) -> Tensor:
    columns = F.unfold(x, stem.kernel_size, stride=stem.stride)
    return columns.mT @ stem.weight.flatten(1).T + stem.bias


def by_pixel_unshuffle(x: Tensor, stem: nn.Conv2d) -> Tensor:
    grid = F.pixel_unshuffle(x, stem.stride[0])
    return F.conv2d(grid, stem.weight.flatten(1)[..., None, None], stem.bias).flatten(2).mT


def by_conv3d(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """The colours are the depth of a volume of one channel."""
    volume = F.conv3d(x[:, None], stem.weight[:, None], stem.bias, stride=(1, *stem.stride))
    return volume.flatten(2).mT


def by_strides(x: Tensor, stem: nn.Conv2d) -> Tensor:
    (ph, pw), (b, c, h, w) = stem.stride, x.shape
    x = x.contiguous()
    sb, sc, sh, sw = x.stride()
    patches = x.as_strided((b, h // ph, w // pw, c, ph, pw), (sb, ph * sh, pw * sw, sc, sh, sw))
    return torch.tensordot(patches, stem.weight, dims=([3, 4, 5], [1, 2, 3])).flatten(1, 2) + stem.bias


def by_strided_slices(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """One product for each place in a patch; their sum is the stem."""
    ph, pw = stem.stride
    total = stem.bias[None, :, None, None]
    for i in range(ph):
        for j in range(pw):
            total = total + torch.einsum("bchw,dc->bdhw", x[:, :, i::ph, j::pw], stem.weight[:, :, i, j])
    return total.flatten(2).mT


def by_tensor_unfold(x: Tensor, stem: nn.Conv2d) -> Tensor:
    ph, pw = stem.stride
    patches = x.unfold(2, ph, ph).unfold(3, pw, pw)
    return torch.einsum("zqrsuv,kquv->zrsk", patches, stem.weight).flatten(1, 2) + stem.bias


def by_conv1d(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """All patches of an image in a row of numbers, a window as long as a patch."""
    (ph, pw), (b, c, h, w) = stem.stride, x.shape
    row = x.view(b, c, h // ph, ph, w // pw, pw).permute(0, 2, 4, 3, 5, 1).reshape(b, 1, -1)
    window = stem.weight.permute(0, 2, 3, 1).reshape(-1, 1, ph * pw * c)
    return F.conv1d(row, window, stem.bias, stride=ph * pw * c).mT


def by_colour(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """A convolution for each colour, and their sum."""
    parts = [F.conv2d(x[:, k : k + 1], stem.weight[:, k : k + 1], stride=stem.stride) for k in range(x.shape[1])]
    return sum(parts).flatten(2).mT + stem.bias


def by_groups(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """One depthwise convolution makes all colours' parts, which are summed."""
    d, c, ph, pw = stem.weight.shape
    filters = stem.weight.transpose(0, 1).reshape(c * d, 1, ph, pw)
    maps = F.conv2d(x, filters, stride=stem.stride, groups=c).unflatten(1, (c, d)).sum(1)
    return (maps + stem.bias[:, None, None]).flatten(2).mT


def by_dense_convolution(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """At every pixel, and only the pixels that begin a patch are kept."""
    ph, pw = stem.stride
    return F.conv2d(x, stem.weight, stem.bias)[..., ::ph, ::pw].flatten(2).mT


def by_chunks(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """Cut by `chunk` into rows and columns, a Linear for each patch, stacked."""
    ph, pw = stem.stride
    rows = x.chunk(x.shape[2] // ph, 2)
    patches = [patch for row in rows for patch in row.chunk(x.shape[3] // pw, 3)]
    weight = stem.weight.flatten(1)
    return torch.stack([F.linear(patch.flatten(1), weight, stem.bias) for patch in patches], 1)


def by_columns_first(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """Height and width swapped on the way in and out."""
    return F.conv2d(x.mT, stem.weight.mT, stem.bias, stem.stride[::-1]).mT.flatten(2).mT


@cache
def positions(c: int, h: int, w: int, ph: int, pw: int) -> Tensor:
    """The place of each number of each patch in a flat image, (tokens, numbers in a patch)."""
    places = torch.arange(c * h * w).view(c, h // ph, ph, w // pw, pw)
    return places.permute(1, 3, 0, 2, 4).reshape(-1, c * ph * pw)


def by_gather(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """Picked out of the flat image by a table of places, which is computed once for all models."""
    patches = x.flatten(1)[:, positions(*x.shape[1:], *stem.stride)]
    return F.linear(patches, stem.weight.flatten(1), stem.bias)


def by_expanded_bmm(x: Tensor, stem: nn.Conv2d) -> Tensor:
    columns = F.unfold(x, stem.kernel_size, stride=stem.stride)
    kernels = stem.weight.flatten(1).expand(len(x), -1, -1)
    return torch.baddbmm(stem.bias[:, None], kernels, columns).transpose(1, 2)


def by_channels_last(x: Tensor, stem: nn.Conv2d) -> Tensor:
    (ph, pw), (b, c, h, w) = stem.stride, x.shape
    x = x.movedim(1, -1).reshape(b, h // ph, ph, w // pw, pw, c).swapaxes(2, 3).flatten(3).flatten(1, 2)
    return torch.matmul(x, stem.weight.permute(2, 3, 1, 0).flatten(0, 2)).add(stem.bias)


def by_bias_of_zeros(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """Padded by nothing, dilated by one; the bias once the tokens stand in a row."""
    x = F.conv2d(F.pad(x, (0, 0, 0, 0)), stem.weight, torch.zeros_like(stem.bias), stem.stride, 0, 1, 1)
    return x.flatten(2).permute(0, 2, 1) + stem.bias


def by_roll(x: Tensor, stem: nn.Conv2d) -> Tensor:
    """Rolled, flipped and back again before the convolution."""
    x = x.roll((1, 2), (2, 3)).flip(3).flip(3).roll((-1, -2), (2, 3))
    return stem(x).flatten(2).mT


STEMS: dict[str, Stem] = {
    "unfold and a product": by_unfold,
    "conv3d over the colours": by_conv3d,
    "as_strided and tensordot": by_strides,
    "strided slices, summed": by_strided_slices,
    "Tensor.unfold and einsum": by_tensor_unfold,
    "conv1d over a row of patches": by_conv1d,
    "a convolution for each colour, summed": by_colour,
    "depthwise convolution, summed": by_groups,
    "at every pixel, then sliced": by_dense_convolution,
    "chunk, and a Linear for each patch": by_chunks,
    "height and width swapped and back": by_columns_first,
    "gathered by a cached table of places": by_gather,
    "baddbmm with expanded kernels": by_expanded_bmm,
    "channels last, matmul": by_channels_last,
    "padded by nothing, bias later": by_bias_of_zeros,
    "rolled and flipped, and back": by_roll,
}
