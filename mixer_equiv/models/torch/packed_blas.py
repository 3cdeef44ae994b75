"""A packed Mixer by torch's own matrix products, which write into memory that is used again.

Every operation is a public one of torch, so that this works on every processor. No block transposes: tokens are mixed
by a product from the left, channels by a transposed weight. The last product of an MLP adds the residual. The hidden
tensors of all blocks share their memory, because pages that are new to a process cost more than the arithmetic on them.
Start reading at `BlasMixer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_equiv.models.torch.activations import ACTIVATIONS, activate
from mixer_equiv.models.torch.fast_mlp import is_transformed
from mixer_equiv.models.torch.protocols import MixerParts, MlpParts, copy_norm
from mixer_equiv.models.torch.replacement_layers import PATCH_PATTERNS


class Mlp(NamedTuple):
    """The weights and biases of an MLP, each in the shape in which it is used."""

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor


class BlasMixer:
    """A function from images (batch, channels, height, width) to logits, both in the model's dtype.

    It computes in float32.
    """

    def __init__(self, model: MixerParts) -> None:
        self.config, self.dtype = model.config, model.stem.weight.dtype
        self.stem = _copy(model.stem.weight.flatten(1).t()), _bias(model.stem)
        blocks: Iterable[Any] = model.blocks
        self.blocks = [
            (
                copy_norm(b.layer_norm_0, torch.float32),
                _token_mlp(b.token_mixing),
                copy_norm(b.layer_norm_1, torch.float32),
                _channel_mlp(b.channel_mixing),
            )
            for b in blocks
        ]
        self.norm = copy_norm(model.pre_head_layer_norm, torch.float32)
        self.head = None if model.head is None else (_copy(model.head.weight), _bias(model.head))
        self.activation = model.config.activation

    def __call__(self, images: Tensor) -> Tensor:
        config, batch = self.config, len(images)
        (ph, pw), tokens, hidden = config.patch_hw, config.num_tokens, config.hidden_dim
        patches = rearrange(images.float(), PATCH_PATTERNS["linear_channels_first"][0], ph=ph, pw=pw)
        x = torch.addmm(self.stem[1], patches.flatten(0, 1), self.stem[0])
        by_token = batch * config.tokens_mlp_dim * hidden
        by_channel = batch * tokens * config.channels_mlp_dim
        between_tokens = between_channels = None
        if not is_transformed():  # vmap has no rules for operations with `out=`
            memory = x.new_empty(max(by_token, by_channel))
            between_tokens = memory[:by_token].view(batch, config.tokens_mlp_dim, hidden)
            between_channels = memory[:by_channel].view(batch * tokens, config.channels_mlp_dim)
        for norm_0, token_mlp, norm_1, channel_mlp in self.blocks:
            x = self._mix_tokens(x.view(batch, tokens, hidden), norm_0, token_mlp, between_tokens).flatten(0, 1)
            x = self._mix_channels(x, norm_1, channel_mlp, between_channels)
        x = self.norm(x).view(batch, tokens, hidden).mean(dim=1)
        return (x if self.head is None else F.linear(x, *self.head)).to(self.dtype)

    def _mix_tokens(self, x: Tensor, norm: Callable[[Tensor], Tensor], mlp: Mlp, between: Tensor | None) -> Tensor:
        """The stream (batch, tokens, hidden) after token mixing.

        Computed in place if there is memory `between` (batch, tokens_mlp, hidden) for the hidden tensor.
        """
        batch = len(x)
        first, last = (weight.expand(batch, -1, -1) for weight in (mlp.first, mlp.last))
        if between is None:
            return (
                torch.baddbmm(x, last, ACTIVATIONS[self.activation](first @ norm(x) + mlp.first_bias)) + mlp.last_bias
            )
        torch.bmm(first, norm(x), out=between)
        rows = activate(between.view(-1, x.shape[2]), self.activation, mlp.first_bias.repeat(batch, 1))
        return torch.baddbmm(x, last, rows.view_as(between), out=x).add_(mlp.last_bias)

    def _mix_channels(self, x: Tensor, norm: Callable[[Tensor], Tensor], mlp: Mlp, between: Tensor | None) -> Tensor:
        """The stream (batch tokens, hidden) after channel mixing.

        Computed in place if there is memory `between` (batch tokens, channels_mlp) for the hidden tensor.
        """
        if between is None:
            return (
                torch.addmm(x, ACTIVATIONS[self.activation](norm(x) @ mlp.first + mlp.first_bias), mlp.last)
                + mlp.last_bias
            )
        torch.mm(norm(x), mlp.first, out=between)
        return torch.addmm(x, activate(between, self.activation, mlp.first_bias), mlp.last, out=x).add_(mlp.last_bias)


def product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from (rows, in) to (rows, out) that multiplies by `weight` (out, in) as channels are mixed.

    A result is overwritten by the next one.
    """
    transposed, memory = _copy(weight.t()), torch.empty(0)

    def multiply(x: Tensor) -> Tensor:
        nonlocal memory
        if len(memory) != len(x):
            memory = transposed.new_empty(len(x), transposed.shape[1])
        return torch.mm(x.float(), transposed, out=memory)

    return multiply


def _copy(value: Tensor) -> Tensor:
    """A copy in float32 and C order."""
    return value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """A copy of the layer's bias, or zeros if it has none."""
    return _copy(layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias)


def _token_mlp(block: MlpParts) -> Mlp:
    first, last = block.dense_0, block.dense_1
    return Mlp(_copy(first.weight), _bias(first)[:, None], _copy(last.weight), _bias(last)[:, None])


def _channel_mlp(block: MlpParts) -> Mlp:
    first, last = block.dense_0, block.dense_1
    return Mlp(_copy(first.weight.t()), _bias(first), _copy(last.weight.t()), _bias(last))
