"""The operations of each `Formulation` in torch, and the replacement of a plain model's layers by them.

Every replacing layer takes and returns the shapes of the plain one, so that the model around it stays as it is; the
transposes that this needs are views. Must not know the classes of `model.py`. Start reading at `apply_formulation`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.formulation import Formulation
from mixer_equiv.models.torch import fused_onednn
from mixer_equiv.models.torch.fast_mlp import LINEAR
from mixer_equiv.models.torch.protocols import MixerParts, MlpParts
from mixer_equiv.models.torch.replacement_layers import ChannelsFirstLayerNorm, LinearStem, Mixing, MixingLinear


def _matmul(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, in, length) to (batch, out, length)."""
    return torch.baddbmm(layer.bias[:, None], layer.weight.expand(len(x), -1, -1), x)


def _pointwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, in, length) to (batch, out, length)."""
    return F.conv1d(x, layer.weight[..., None], layer.bias)


def _depthwise(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, channels, in) to (batch, channels, out): the same filters, repeated for every channel."""
    batch, channels, _ = x.shape
    filters, biases = layer.weight[:, None].repeat(channels, 1, 1), layer.bias.repeat(channels)
    return F.conv1d(x, filters, biases, groups=channels).reshape(batch, channels, len(layer.weight))


def _shared(x: Tensor, layer: nn.Linear) -> Tensor:
    """(batch, channels, in) to (batch, channels, out): each channel is an image of one row, under the same filters."""
    batch, channels, width = x.shape
    rows = F.conv2d(x.reshape(-1, 1, 1, width), layer.weight[:, None, None], layer.bias)
    return rows.reshape(batch, channels, len(layer.weight))


TOKEN_MIXINGS: dict[str, Mixing] = {
    "linear": LINEAR,
    "matmul": Mixing(_matmul, -2),
    "depthwise_conv": Mixing(_depthwise, -1),
    "shared_conv": Mixing(_shared, -1, fused_onednn.shared),
    "conv1d": Mixing(_pointwise, -2, fused_onednn.pointwise),
}
CHANNEL_MIXINGS: dict[str, Mixing] = {
    "linear": LINEAR,
    "conv1d": Mixing(_pointwise, -2, fused_onednn.pointwise),
}


def apply_formulation(model: MixerParts, formulation: Formulation) -> None:
    """Replace the layers of a plain `model` by layers of this formulation, on the same parameters.

    A channels-first stream has the shape (batch, tokens, hidden) of the plain one, and lies in memory as
    (batch, hidden, tokens).
    """
    if formulation.patch != "conv":
        model.stem = LinearStem(model.stem, formulation.patch)
    for block in model.blocks:
        set_mixing(block.token_mixing, TOKEN_MIXINGS[formulation.tokens])
        set_mixing(block.channel_mixing, CHANNEL_MIXINGS[formulation.channels])
        if formulation.channels_first:
            block.layer_norm_0 = ChannelsFirstLayerNorm(block.layer_norm_0)
            block.layer_norm_1 = ChannelsFirstLayerNorm(block.layer_norm_1)
    if formulation.channels_first:
        model.pre_head_layer_norm = ChannelsFirstLayerNorm(model.pre_head_layer_norm)


def set_mixing(mlp: MlpParts, mixing: Mixing) -> None:
    """Replace the layers of a plain MLP by layers of this mixing, on the same parameters."""
    if mixing is not LINEAR:
        mlp.dense_0 = MixingLinear(mlp.dense_0, mixing)
        mlp.dense_1 = MixingLinear(mlp.dense_1, mixing)
