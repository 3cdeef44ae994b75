"""torch's own layers, their parameters used by another operation: called as any module, so that hooks on them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig

# From an input and the layer whose parameters are used.
Mix = Callable[[Tensor, nn.Linear], Tensor]


class TorchMlp(Protocol):
    """What is read of an MLP whose weights are packed."""

    dense_0: nn.Linear
    dense_1: nn.Linear
    activation: str


class TorchMixer(Protocol):
    """What is read of a Mixer whose weights are packed: `mixer_equiv.models.torch.MlpMixer`."""

    config: MixerConfig
    stem: nn.Conv2d
    blocks: Any
    pre_head_layer_norm: nn.LayerNorm
    head: nn.Linear | None

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


# Of images to tokens, and of the stem's weight to that of a Linear over them.
FLATTENED = {
    "linear": ("b c (h ph) (w pw) -> b (h w) (ph pw c)", "d c ph pw -> d (ph pw c)"),
    "linear_channels_first": ("b c (h ph) (w pw) -> b (h w) (c ph pw)", "d c ph pw -> d (c ph pw)"),
}


class Dense(nn.Linear):
    """An nn.Linear that `mix` computes, from an input and this module."""

    def __init__(self, in_features: int, out_features: int, mix: Mix) -> None:
        super().__init__(in_features, out_features)
        self.mix = mix

    def forward(self, input: Tensor) -> Tensor:
        return self.mix(input, self)


class LinearStem(nn.Conv2d):
    """The convolution of patches as a product over them, flattened as `patch` says (`FLATTENED`)."""

    def __init__(self, in_channels: int, hidden_dim: int, patch_hw: tuple[int, int], patch: str) -> None:
        super().__init__(in_channels, hidden_dim, patch_hw, stride=patch_hw)
        self.patch = patch

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, tokens, hidden)."""
        of_images, of_weight = FLATTENED[self.patch]
        ph, pw = self.weight.shape[2:]
        return F.linear(rearrange(input, of_images, ph=ph, pw=pw), rearrange(self.weight, of_weight), self.bias)


def copied_norm(norm: nn.LayerNorm, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """What it computes, on copies of its weights as they are now, of another dtype where one is given."""
    weight, bias = (value.detach().to(dtype or value.dtype, copy=True) for value in (norm.weight, norm.bias))
    return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)


class LayerNormChannelsFirst(nn.LayerNorm):
    """Over the middle axis of three, without a transpose."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, hidden, tokens) to the same."""
        variance, mean = torch.var_mean(input, -2, correction=0, keepdim=True)
        return (input - mean) * torch.rsqrt(variance + self.eps) * self.weight[:, None] + self.bias[:, None]
