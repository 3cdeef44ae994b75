"""Both MLPs in other writings: (y, first Linear, second Linear, gelu) to the shape of y, (b, s, d)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Gelu

Mix = Callable[[Tensor, nn.Linear, nn.Linear, Gelu], Tensor]


def mixing(dense: Callable[[Tensor, Tensor, Tensor], Tensor], axis: int) -> Mix:
    """An MLP by `dense` (x, weight, bias), which mixes the last axis; channels with axis 2, tokens with 1."""

    def mix(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
        hidden = act(dense(y.transpose(axis, -1), first.weight, first.bias))
        return dense(hidden, second.weight, second.bias).transpose(axis, -1)

    return mix


def tokens_without_second_bias(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """The next LayerNorm takes away what this bias adds."""
    return F.linear(act(first(y.mT)), second.weight).mT


def tokens_by_einsum(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    wide = act(torch.einsum("qzk,mz->kmq", y, first.weight) + first.bias[:, None])
    return torch.einsum("kmq,zm->qzk", wide, second.weight) + second.bias.view(1, -1, 1)


def tokens_from_the_left(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return second.weight @ act(first.weight @ y + first.bias[:, None]) + second.bias[:, None]


def tokens_by_baddbmm(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    w1, w2 = (layer.weight.expand(len(y), -1, -1) for layer in (first, second))
    return torch.baddbmm(second.bias[None, :, None], w2, act(torch.baddbmm(first.bias[None, :, None], w1, y)))


def tokens_in_one_product(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """All images beside each other, (tokens, b * d): one matrix product for the batch."""
    columns = y.permute(1, 0, 2).flatten(1)
    columns = torch.addmm(first.bias[:, None], first.weight, columns)
    columns = torch.addmm(second.bias[:, None], second.weight, act(columns))
    return columns.unflatten(1, (len(y), -1)).transpose(0, 1)


def tokens_by_conv1d(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    wide = act(F.conv1d(y, first.weight[..., None], first.bias))
    return F.conv1d(wide, second.weight.unsqueeze(-1), second.bias)


def tokens_by_conv2d(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """Each channel is a row of an image of one colour, a filter as wide as the row."""
    wide = act(F.conv2d(y.mT[:, None], first.weight[:, None, None], first.bias)[..., 0])
    return F.conv2d(wide.mT[:, None], second.weight[:, None, None], second.bias)[..., 0]


def tokens_channel_by_channel(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return torch.stack([second(act(first(y[..., k]))) for k in range(y.shape[-1])], -1)


def tokens_in_groups_of_channels(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return torch.cat([second(act(first(part.mT))).mT for part in y.split(7, -1)], -1)


def tokens_by_groups_of_units(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """Some hidden units at a time; what they add is summed."""
    total = second.bias[:, None]
    for rows in torch.arange(first.out_features).split(4):
        wide = act(F.linear(y.mT, first.weight[rows], first.bias[rows]))
        total = total + (wide @ second.weight[:, rows].T).mT
    return total


def tokens_row_by_row(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """A hidden unit at a time, then an output token at a time."""
    wide = torch.stack([act(torch.einsum("s,bsd->bd", w, y) + b) for w, b in zip(first.weight, first.bias)], 1)  # noqa: B905
    rows = [(w[None, :, None] * wide).sum(1) + b for w, b in zip(second.weight, second.bias)]  # noqa: B905
    return torch.stack(rows, 1)


def tokens_input_by_input(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """What each input token adds is summed."""
    wide = first.bias[:, None]
    for s in range(y.shape[1]):
        wide = wide + first.weight[:, s, None] * y[:, s, None]
    wide, out = act(wide), second.bias[:, None]
    for t in range(wide.shape[1]):
        out = out + second.weight[:, t, None] * wide[:, t, None]
    return out


def tokens_by_kronecker(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """A flat image times a matrix that has the weight once for each channel."""
    d = y.shape[-1]
    eye = torch.eye(d, dtype=y.dtype)
    wide = y.flatten(1) @ torch.kron(first.weight, eye).T + first.bias.repeat_interleave(d)
    flat = act(wide) @ torch.kron(second.weight, eye).T + second.bias.repeat_interleave(d)
    return flat.view(y.shape)


def by_tensordot(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tensordot(x, weight, dims=([-1], [1])) + bias


def by_column_of_ones(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The bias is one more column of the matrix, and one more number of the input is 1."""
    return torch.cat([x, torch.ones_like(x[..., :1])], -1) @ torch.cat([weight, bias[:, None]], 1).T


def by_padding_with_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.pad(x, (1, 0), value=1.0), torch.hstack([bias[:, None], weight]))


def by_broadcasting(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All products at once, then their sum."""
    return (x.unsqueeze(-2) * weight).sum(-1) + bias


def by_halves_of_inputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x[..., :half] @ weight[:, :half].T + x[..., half:] @ weight[:, half:].T + bias


def by_halves_of_outputs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    parts = zip(weight.chunk(2), bias.chunk(2), strict=True)
    return torch.cat([F.linear(x, w, b) for w, b in parts], -1)


def by_padded_weights(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Rows of zeros make the width a multiple of 8, which fast kernels like, and are cut off again."""
    more = -len(weight) % 8
    return F.linear(x, F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more)))[..., : len(weight)]


def by_out_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Into a tensor that was made before; without gradients, for which `out` has no use."""
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
        return torch.addmm(bias, rows, weight.T).view(*x.shape[:-1], -1)
    result = rows.new_empty(len(rows), len(weight))
    torch.addmm(bias, rows, weight.T, out=result)
    return result.view(*x.shape[:-1], -1)


def by_setitem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One output after the other is written into a tensor that was made before."""
    result = x.new_zeros(*x.shape[:-1], len(weight))
    for k in range(len(weight)):
        result[..., k] = torch.mv(x.reshape(-1, x.shape[-1]), weight[k]).view(x.shape[:-1]) + bias[k]
    return result


def by_bilinear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A bilinear form with a second input of ones."""
    return F.bilinear(x.contiguous(), torch.ones_like(x[..., :1]).contiguous(), weight[..., None], bias)


def by_row_loop(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One row of the input after the other."""
    rows = [torch.addmv(bias, weight, row) for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).view(*x.shape[:-1], -1)


def channels_by_groups_of_units(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    total = second.bias
    for w1, b1, w2 in zip(first.weight.split(9), first.bias.split(9), second.weight.split(9, 1), strict=True):
        total = total + act(F.linear(y, w1, b1)) @ w2.T
    return total


def channels_unit_by_unit(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """A sum of as many outer products as there are hidden units."""
    total = second.bias.expand(y.shape)
    for k in range(first.out_features):
        total = total + act(y @ first.weight[k] + first.bias[k])[..., None] * second.weight[:, k]
    return total


def channels_token_by_token(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return torch.stack([second(act(first(token))) for token in y.unbind(1)], 1)


def channels_by_experts(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    """Two experts of half the hidden units each, both always chosen."""
    w1, w2 = first.weight.unflatten(0, (2, -1)), second.weight.unflatten(1, (2, -1))
    wide = act(torch.einsum("bsd,hkd->bshk", y, w1) + first.bias.unflatten(0, (2, -1)))
    return torch.einsum("bshk,dhk->bsd", wide, w2) + second.bias


def channels_by_conv2d(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    maps = y.mT[..., None]
    maps = act(F.conv2d(maps, first.weight[..., None, None], first.bias))
    return F.conv2d(maps, second.weight[..., None, None], second.bias)[..., 0].mT


def channels_image_by_image(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return torch.cat([second(act(first(image))) for image in y.split(1)])


TOKENS: dict[str, Mix] = {
    "without the second bias": tokens_without_second_bias,
    "einsum": tokens_by_einsum,
    "matmul from the left": tokens_from_the_left,
    "baddbmm": tokens_by_baddbmm,
    "one product for the batch": tokens_in_one_product,
    "conv1d": tokens_by_conv1d,
    "conv2d": tokens_by_conv2d,
    "channel by channel": tokens_channel_by_channel,
    "in groups of channels": tokens_in_groups_of_channels,
    "in groups of hidden units, summed": tokens_by_groups_of_units,
    "row by row": tokens_row_by_row,
    "input by input, summed": tokens_input_by_input,
    "tensordot": mixing(by_tensordot, 1),
    "column of ones": mixing(by_column_of_ones, 1),
    "halves of the outputs": mixing(by_halves_of_outputs, 1),
    "broadcasting": mixing(by_broadcasting, 1),
    "setitem": mixing(by_setitem, 1),
}
CHANNELS: dict[str, Mix] = {
    "column of ones": mixing(by_column_of_ones, 2),
    "padding with a one": mixing(by_padding_with_one, 2),
    "broadcasting": mixing(by_broadcasting, 2),
    "halves of the inputs, summed": mixing(by_halves_of_inputs, 2),
    "halves of the outputs": mixing(by_halves_of_outputs, 2),
    "padded weights": mixing(by_padded_weights, 2),
    "out= arguments": mixing(by_out_arguments, 2),
    "setitem": mixing(by_setitem, 2),
    "bilinear": mixing(by_bilinear, 2),
    "row by row": mixing(by_row_loop, 2),
    "in groups of hidden units, summed": channels_by_groups_of_units,
    "unit by unit, summed": channels_unit_by_unit,
    "token by token": channels_token_by_token,
    "two experts, summed": channels_by_experts,
    "conv2d": channels_by_conv2d,
    "image by image": channels_image_by_image,
}
