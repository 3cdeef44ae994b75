"""The parts of a torch Mixer that its formulations replace and its packed copies read.

The classes of `model.py` have these attributes; that module imports the ones that replace and pack them, and cannot be
imported by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig


class MlpParts(Protocol):
    """The attributes of an `MlpBlock`."""

    dense_0: nn.Linear
    dense_1: nn.Linear
    activation: str


class MixerParts(Protocol):
    """The attributes of an `MlpMixer`. Each of `blocks` has `layer_norm_0`, `token_mixing` and so on."""

    config: MixerConfig
    stem: nn.Conv2d
    blocks: Any
    pre_head_layer_norm: nn.LayerNorm
    head: nn.Linear | None

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


def check_images(images: Tensor, config: MixerConfig) -> None:
    """Raises `ValueError` for images that are not (batch, channels, height, width) of the config's sizes."""
    expected = (config.in_channels, *config.image_hw)
    if images.shape[1:] != expected:
        sizes = ", ".join(map(str, expected))
        raise ValueError(f"images have shape {tuple(images.shape)}; this model takes (batch, {sizes})")


def copy_norm(norm: nn.LayerNorm, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
    """The function that `norm` computes, on copies of its weights in `dtype`, by default their own."""
    weight, bias = (value.detach().to(dtype or value.dtype, copy=True) for value in (norm.weight, norm.bias))
    return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)
