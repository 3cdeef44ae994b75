"""The operations of each `Formulation` in torch, on the parameters that nn.Linear and nn.Conv2d hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.models import torch_fused
from mixer_equiv.models.torch_fused import NO_POST_OP, POST_OPS, PostOp, can_fuse

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Mixing(NamedTuple):
    """What stands for a Linear: from x and the layer to x with `in` made `out` on `axis`, one of the last two.

    `fused` is the same with an activation inside, where there is such an operation.
    """

    mix: Callable[[Tensor, nn.Linear], Tensor]
    axis: int
    fused: Callable[[Tensor, nn.Linear, PostOp], Tensor] | None = None


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """(..., in) to (..., out), by the module itself, so that hooks on it run."""
    return layer(x)


def _matmul(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, in, length) to (batch, out, length)."""
    return torch.baddbmm(layer.bias[:, None], layer.weight.expand(len(x), -1, -1), x)


def _pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, in, length) to (batch, out, length)."""
    return F.conv1d(x, layer.weight[..., None], layer.bias)


def _depthwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, channels, in) to (batch, channels, out): the same filters for every channel, written out."""
    batch, channels, _ = x.shape
    filters, biases = layer.weight[:, None].repeat(channels, 1, 1), layer.bias.repeat(channels)
    return F.conv1d(x, filters, biases, groups=channels).reshape(batch, channels, layer.out_features)


def _shared(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, channels, in) to (batch, channels, out): a channel is a picture of one row, and all meet the filters."""
    batch, channels, width = x.shape
    rows = F.conv2d(x.reshape(-1, 1, 1, width), layer.weight[:, None, None], layer.bias)
    return rows.reshape(batch, channels, layer.out_features)


TOKENS: dict[str, Mixing] = {
    "linear": Mixing(_linear, -1, torch_fused.linear),
    "matmul": Mixing(_matmul, -2),
    "depthwise_conv": Mixing(_depthwise, -1),
    "shared_conv": Mixing(_shared, -1, torch_fused.shared),
    "conv1d": Mixing(_pointwise, -2, torch_fused.pointwise_channels_last),
}
CHANNELS: dict[str, Mixing] = {
    "linear": Mixing(_linear, -1, torch_fused.linear),
    "conv1d": Mixing(_pointwise, -2, torch_fused.pointwise),
}


def mlp(x: Tensor, axis: int, layers: tuple[nn.Linear, nn.Linear], activation: str, mixing: Mixing) -> Tensor:
    """Two layers over this axis of `x` (batch, ., .), with transposes around them where they mix the other one."""
    first, last = layers
    x = x if axis == mixing.axis else x.transpose(1, 2)
    if mixing.fused is not None and can_fuse(x, layers, activation):
        x = mixing.fused(mixing.fused(x, first, POST_OPS[activation]), last, NO_POST_OP)
    else:
        x = mixing.mix(ACTIVATIONS[activation](mixing.mix(x, first)), last)
    return x if axis == mixing.axis else x.transpose(1, 2)


def layer_norm(x: Tensor, norm: nn.LayerNorm, axis: int) -> Tensor:
    """`norm` over this axis, without a transpose where it is not the last."""
    if axis == -1:
        return norm(x)
    variance, mean = torch.var_mean(x, axis, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


# Of images to tokens, and of the stem's weight to that of a Linear over them.
FLATTENED = {
    "linear": ("b c (h ph) (w pw) -> b (h w) (ph pw c)", "d c ph pw -> d (ph pw c)"),
    "linear_channels_first": ("b c (h ph) (w pw) -> b (h w) (c ph pw)", "d c ph pw -> d (c ph pw)"),
}


def check_images(images: Tensor, config: MixerConfig) -> None:
    """Raises `ValueError` for what is not (batch, channels, height, width) of the config's sizes."""
    expected = (config.in_channels, *config.image_hw)
    if images.shape[1:] != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"images have shape {tuple(images.shape)}; this model takes (batch, {sizes})")


def embed(images: Tensor, stem: nn.Conv2d, patch: str, *, channels_first: bool) -> Tensor:
    """(batch, channels, height, width) to (batch, tokens, hidden), or (batch, hidden, tokens)."""
    if patch == "conv":
        x = stem(images).flatten(2)
        return x if channels_first else x.transpose(1, 2)
    of_images, of_weight = FLATTENED[patch]
    ph, pw = stem.weight.shape[2:]
    x = F.linear(rearrange(images, of_images, ph=ph, pw=pw), rearrange(stem.weight, of_weight), stem.bias)
    return x.transpose(1, 2) if channels_first else x
