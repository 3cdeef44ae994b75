"""Layers that use the parameters of a torch layer by another operation, and can stand in its place.

Each is a subclass of the layer that it replaces, takes over its parameters, and takes and returns the same shapes, so
that hooks, pruning and `state_dict` work as they do on torch's own. It must not know the model it is part of: where
each layer stands is said in `formulations.py`. Start reading at `MixingLinear`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_equiv.models.torch.fused_onednn import FusedOperation

# An operation in place of a Linear: from an input and the layer whose weight and bias are used.
Operation = Callable[[Tensor, nn.Linear], Tensor]


class Mixing(NamedTuple):
    """An operation that multiplies one of the last two axes by a layer's weight, and adds its bias.

    `operation` maps an input with `in` numbers on `axis` to one with `out`. `fused` computes the same with an
    activation inside; None where there is no such operation.
    """

    operation: Operation
    axis: int
    fused: FusedOperation | None = None


class MixingLinear(nn.Linear):
    """An nn.Linear computed by the operation of a `Mixing`."""

    def __init__(self, replaced: nn.Linear, mixing: Mixing) -> None:
        super().__init__(replaced.in_features, replaced.out_features, device="meta")
        self.weight, self.bias = replaced.weight, replaced.bias
        self.mixing = mixing

    def forward(self, input: Tensor) -> Tensor:
        """(batch, length, in) to (batch, length, out)."""
        if self.mixing.axis == -1:
            return self.mixing.operation(input, self)
        return self.mixing.operation(input.transpose(1, 2), self).transpose(1, 2)


# einops patterns by the order of a flattened patch: images to tokens, and the stem's weight to that of a Linear.
PATCH_PATTERNS = {
    "linear": ("b c (h ph) (w pw) -> b (h w) (ph pw c)", "d c ph pw -> d (ph pw c)"),
    "linear_channels_first": ("b c (h ph) (w pw) -> b (h w) (c ph pw)", "d c ph pw -> d (c ph pw)"),
}


class LinearStem(nn.Conv2d):
    """A convolution of patches computed as a product over flattened patches; `order` is one of `PATCH_PATTERNS`."""

    def __init__(self, replaced: nn.Conv2d, order: str) -> None:
        ph, pw = replaced.kernel_size
        super().__init__(replaced.in_channels, replaced.out_channels, (ph, pw), stride=(ph, pw), device="meta")
        self.weight, self.bias = replaced.weight, replaced.bias
        self.order = order

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, hidden, rows, columns), a view of (batch, tokens, hidden)."""
        images_pattern, weight_pattern = PATCH_PATTERNS[self.order]
        ph, pw = self.weight.shape[2:]
        patches = rearrange(input, images_pattern, ph=ph, pw=pw)
        tokens = F.linear(patches, rearrange(self.weight, weight_pattern), self.bias)
        return rearrange(tokens, "b (h w) d -> b d h w", h=input.shape[2] // ph)


class ChannelsFirstLayerNorm(nn.LayerNorm):
    """A LayerNorm of a stream that lies in memory as (batch, hidden, tokens).

    torch's own would copy the stream into the order (batch, tokens, hidden).
    """

    def __init__(self, replaced: nn.LayerNorm) -> None:
        super().__init__(replaced.normalized_shape, eps=replaced.eps, device="meta")
        self.weight, self.bias = replaced.weight, replaced.bias

    def forward(self, input: Tensor) -> Tensor:
        """(batch, tokens, hidden) to the same."""
        variance, mean = torch.var_mean(input, -1, correction=0, keepdim=True)
        return (input - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
