"""The operations of each `Formulation` in torch, on the parameters that nn.Linear and nn.Conv2d hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.models.torch import fused as torch_fused
from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.inference import Mixing, infer
from mixer_equiv.models.torch.modules import Dense, LayerNormChannelsFirst, LinearStem


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
    return F.conv1d(x, filters, biases, groups=channels).reshape(batch, channels, len(layer.weight))


def _shared(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, channels, in) to (batch, channels, out): a channel is a picture of one row, and all meet the filters."""
    batch, channels, width = x.shape
    rows = F.conv2d(x.reshape(-1, 1, 1, width), layer.weight[:, None, None], layer.bias)
    return rows.reshape(batch, channels, len(layer.weight))


TOKENS: dict[str, Mixing] = {
    "linear": Mixing(None, -1, torch_fused.linear),
    "matmul": Mixing(_matmul, -2),
    "depthwise_conv": Mixing(_depthwise, -1),
    "shared_conv": Mixing(_shared, -1, torch_fused.shared),
    "conv1d": Mixing(_pointwise, -2, torch_fused.pointwise),
}
CHANNELS: dict[str, Mixing] = {
    "linear": Mixing(None, -1, torch_fused.linear),
    "conv1d": Mixing(_pointwise, -2, torch_fused.pointwise),
}


def dense(in_features: int, out_features: int, mixing: Mixing) -> nn.Linear:
    """The layer of this mixing: torch's own where that is what mixes."""
    return nn.Linear(in_features, out_features) if mixing.mix is None else Dense(in_features, out_features, mixing.mix)


def norm(dim: int, eps: float, *, channels_first: bool) -> nn.LayerNorm:
    """Over the channels, the last axis or the one before."""
    return (LayerNormChannelsFirst if channels_first else nn.LayerNorm)(dim, eps=eps)


def stem(config: MixerConfig, patch: str) -> nn.Conv2d:
    """The patch embedding: torch's own where that is a convolution."""
    if patch == "conv":
        return nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, stride=config.patch_hw)
    return LinearStem(config.in_channels, config.hidden_dim, config.patch_hw, patch)


def mlp(x: Tensor, axis: int, layers: tuple[nn.Linear, nn.Linear], activation: str, mixing: Mixing) -> Tensor:
    """Two layers over this axis of `x` (batch, ., .), with transposes around them where they mix the other one."""
    first, last = layers
    x = x if axis == mixing.axis else x.transpose(1, 2)
    y = infer(x, layers, activation, mixing)
    if y is None:
        y = _called(last, ACTIVATIONS[activation](_called(first, x, mixing)), mixing)
    return y if axis == mixing.axis else y.transpose(1, 2)


def _called(layer: nn.Module, x: Tensor, mixing: Mixing) -> Tensor:
    """The layer on the axis of this mixing; one that somebody put in its place is for the last, as a Linear is."""
    if mixing.axis == -1 or isinstance(layer, Dense):
        return layer(x)
    return layer(x.transpose(1, 2)).transpose(1, 2)


def check_images(images: Tensor, config: MixerConfig) -> None:
    """Raises `ValueError` for what is not (batch, channels, height, width) of the config's sizes."""
    expected = (config.in_channels, *config.image_hw)
    if images.shape[1:] != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"images have shape {tuple(images.shape)}; this model takes (batch, {sizes})")


def embed(images: Tensor, stem: nn.Conv2d, *, channels_first: bool) -> Tensor:
    """(batch, channels, height, width) to (batch, tokens, hidden), or (batch, hidden, tokens)."""
    x = stem(images)
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    return x.transpose(1, 2) if channels_first else x
