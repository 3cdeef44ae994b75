"""LayerNorm over channels in other writings: (x, scale, bias) to the shape of x, whose last axis are channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Mixer, MixerBlock

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
EPS = 1e-6


def by_var_mean(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * scale + bias


def by_moments(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    mean, square = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(square - mean**2 + EPS) * scale + bias


def by_clamped_moments(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The variance is held at 0, as rounding may bring it below."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x * x).mean(-1, keepdim=True) - mean * mean).clamp(min=0)
    multiplier = scale / torch.sqrt(variance + EPS)
    return x * multiplier + (bias - mean * multiplier)


def on_permuted_view(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`F.layer_norm` on a view of a copy with the channels first in memory."""
    first = x.mT.contiguous()
    return F.layer_norm(first.permute(0, 2, 1), [first.shape[1]], scale, bias, EPS)


def by_group_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A group norm of one group over tokens that are each an image of one pixel."""
    return F.group_norm(x.reshape(-1, x.shape[-1], 1), 1, scale, bias, EPS).view(x.shape)


def by_instance_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x.flatten(0, 1)[None], eps=EPS)[0].view(x.shape) * scale + bias


def by_batch_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Channels stand where a batch norm in training expects its batch."""
    rows = x.reshape(-1, x.shape[-1])
    return F.batch_norm(rows.T, None, None, training=True, eps=EPS).T.reshape(x.shape) * scale + bias


def by_vector_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / torch.sqrt(length**2 / x.shape[-1] + EPS) * scale + bias


def by_hypot(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The root of variance plus eps as the length of a right triangle's third side."""
    deviation, mean = torch.std_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / torch.hypot(deviation, torch.full_like(deviation, EPS**0.5)) * scale + bias


def by_centring_matrix(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    d = x.shape[-1]
    centred = x @ (torch.eye(d, dtype=x.dtype) - 1 / d)
    return centred * (centred.pow(2).sum(-1, keepdim=True) / d + EPS).pow(-0.5) * scale + bias


def by_einsum(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    centred = x - torch.einsum("ijk->ij", x)[..., None] / x.shape[-1]
    variance = torch.einsum("ijk,ijk->ij", centred, centred) / x.shape[-1]
    return torch.einsum("ijk,ij,k->ijk", centred, (variance + EPS).rsqrt(), scale) + bias


def by_native(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.native_layer_norm(x, [x.shape[-1]], scale, bias, EPS)[0]


def in_place(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = x.clone()
    y -= y.mean(-1, keepdim=True)
    y /= y.square().mean(-1, keepdim=True).add_(EPS).sqrt_()
    return y.mul_(scale).add_(bias)


def in_float32(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As under mixed precision: computed in float32 at least, handed on in the stream's dtype."""
    return F.layer_norm(x.float(), scale.shape, scale.float(), bias.float(), EPS).type_as(x)


def in_float64(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    wide = x.double()
    wide = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    return wide.to(x.dtype) * scale + bias


def token_by_token(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return torch.stack([F.layer_norm(token, scale.shape, scale, bias, EPS) for token in x.unbind(1)], 1)


def by_welford(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Mean and sum of squares are updated channel by channel."""
    mean = torch.zeros_like(x[..., 0])
    squares = torch.zeros_like(mean)
    for k, channel in enumerate(x.unbind(-1), 1):
        step = channel - mean
        mean = mean + step / k
        squares = squares + step * (channel - mean)
    variance = squares / x.shape[-1]
    return (x - mean[..., None]) / torch.sqrt(variance[..., None] + EPS) * scale + bias


def with_scale_first(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Scaled before the division."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * scale / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() + bias


def folded(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """LayerNorm and Linear, the scale and bias of the one multiplied into the other."""
    normed = F.layer_norm(x, norm.normalized_shape, eps=EPS)
    return F.linear(normed, layer.weight * norm.weight, layer.bias + layer.weight @ norm.bias)


def scale_folded(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> Tensor:
    """The scale alone, by a kernel that is diagonal."""
    normed = F.layer_norm(x, norm.normalized_shape, eps=EPS) @ torch.diag(norm.weight)
    return layer(normed + norm.bias)


class FoldedBlock(MixerBlock):
    fold = staticmethod(folded)

    def channels(self, x: Tensor) -> Tensor:
        return self.channels_1(self.parts["gelu"](self.fold(x, self.norm_1, self.channels_0)))


class FoldedScaleBlock(FoldedBlock):
    fold = staticmethod(scale_folded)


class Folded(Mixer):
    """Its last LayerNorm is folded into the head, behind the mean."""

    def __init__(self, block: type[FoldedBlock] = FoldedBlock) -> None:
        super().__init__()
        for held in self.blocks:
            held.__class__ = block

    def classify(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, self.norm.normalized_shape, eps=EPS).mean(1)
        weight, bias = self.head.weight * self.norm.weight, self.head.bias + self.head.weight @ self.norm.bias
        return F.linear(normed, weight, bias)


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "folded into layers": Folded,
    "scale as a diagonal kernel": lambda: Folded(FoldedScaleBlock),
}

NORMS: dict[str, Norm] = {
    "var_mean": by_var_mean,
    "moments": by_moments,
    "moments, clamped at 0, folded into one scale": by_clamped_moments,
    "layer_norm of a permuted view": on_permuted_view,
    "group_norm of one group": by_group_norm,
    "instance_norm": by_instance_norm,
    "batch_norm of the transpose": by_batch_norm,
    "vector norm": by_vector_norm,
    "std_mean and hypot": by_hypot,
    "centring matrix": by_centring_matrix,
    "einsum": by_einsum,
    "native_layer_norm": by_native,
    "in place": in_place,
    "in float32": in_float32,
    "in float64": in_float64,
    "token by token": token_by_token,
    "Welford's updates": by_welford,
    "scaled before the division": with_scale_first,
}
