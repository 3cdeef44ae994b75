"""A packed Mixer by torch's own matrix products, into memory that is used again, without a transpose in any block.

Every operation is one of torch's public ones, so that this works on every processor. Tokens are mixed by a product
from the left, channels by a transposed weight; each residual is added inside the last product of its MLP. The hidden
tensors of all blocks share their memory: pages that are new to a process cost more than the arithmetic on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_equiv.models.torch.activations import ACTIVATIONS, activate
from mixer_equiv.models.torch.inference import is_transformed
from mixer_equiv.models.torch.modules import FLATTENED, TorchMixer, TorchMlp, copied_norm


class Mlp(NamedTuple):
    """The weights and biases of an MLP as they are multiplied."""

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor


class BlasMixer:
    """Images (batch, channels, height, width) of the model's dtype to logits of it, computed in float32."""

    def __init__(self, model: TorchMixer) -> None:
        self.config, self.dtype = model.config, model.stem.weight.dtype
        self.stem = _copied(model.stem.weight.flatten(1).t()), _bias(model.stem)
        blocks: Iterable[Any] = model.blocks
        self.blocks = [
            (
                copied_norm(b.layer_norm_0, torch.float32),
                _token_mlp(b.token_mixing),
                copied_norm(b.layer_norm_1, torch.float32),
                _channel_mlp(b.channel_mixing),
            )
            for b in blocks
        ]
        self.norm = copied_norm(model.pre_head_layer_norm, torch.float32)
        self.head = None if model.head is None else (_copied(model.head.weight), _bias(model.head))
        self.activation = model.config.activation

    def __call__(self, images: Tensor) -> Tensor:
        config, batch = self.config, len(images)
        (ph, pw), tokens, hidden = config.patch_hw, config.num_tokens, config.hidden_dim
        patches = rearrange(images.float(), FLATTENED["linear_channels_first"][0], ph=ph, pw=pw)
        x = torch.addmm(self.stem[1], patches.flatten(0, 1), self.stem[0])
        by_token = batch * config.tokens_mlp_dim * hidden
        by_channel = batch * tokens * config.channels_mlp_dim
        between_tokens = between_channels = None
        if not is_transformed():  # vmap has no rules for results that are given their memory
            memory = x.new_empty(max(by_token, by_channel))
            between_tokens = memory[:by_token].view(batch, config.tokens_mlp_dim, hidden)
            between_channels = memory[:by_channel].view(batch * tokens, config.channels_mlp_dim)
        for norm_0, token_mlp, norm_1, channel_mlp in self.blocks:
            x = self._mix_tokens(x.view(batch, tokens, hidden), norm_0, token_mlp, between_tokens).flatten(0, 1)
            x = self._mix_channels(x, norm_1, channel_mlp, between_channels)
        x = self.norm(x).view(batch, tokens, hidden).mean(dim=1)
        return (x if self.head is None else F.linear(x, *self.head)).to(self.dtype)

    def _mix_tokens(self, x: Tensor, norm: Callable[[Tensor], Tensor], mlp: Mlp, between: Tensor | None) -> Tensor:
        """The stream (batch, tokens, hidden) after it, in place with memory `between` (batch, tokens_mlp, hidden)."""
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
        """The stream (batch tokens, hidden) after it, in place with memory `between` (batch tokens, channels_mlp)."""
        if between is None:
            return (
                torch.addmm(x, ACTIVATIONS[self.activation](norm(x) @ mlp.first + mlp.first_bias), mlp.last)
                + mlp.last_bias
            )
        torch.mm(norm(x), mlp.first, out=between)
        return torch.addmm(x, activate(between, self.activation, mlp.first_bias), mlp.last, out=x).add_(mlp.last_bias)


def product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """(rows, in) to (rows, out) by a weight (out, in), as channels are mixed; a result is good until the next."""
    transposed, memory = _copied(weight.t()), torch.empty(0)

    def multiply(x: Tensor) -> Tensor:
        nonlocal memory
        if len(memory) != len(x):
            memory = transposed.new_empty(len(x), transposed.shape[1])
        return torch.mm(x.float(), transposed, out=memory)

    return multiply


def _copied(value: Tensor) -> Tensor:
    """In float32 and C order, and nobody else's."""
    return value.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    """The bias of a layer, zeros for none."""
    return _copied(layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias)


def _token_mlp(block: TorchMlp) -> Mlp:
    first, last = block.dense_0, block.dense_1
    return Mlp(_copied(first.weight), _bias(first)[:, None], _copied(last.weight), _bias(last)[:, None])


def _channel_mlp(block: TorchMlp) -> Mlp:
    first, last = block.dense_0, block.dense_1
    return Mlp(_copied(first.weight.t()), _bias(first), _copied(last.weight.t()), _bias(last))
