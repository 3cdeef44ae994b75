"""The official initial weights of a torch Mixer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixer_equiv.models.torch.protocols import MixerParts


@torch.no_grad()
def initialize(model: MixerParts) -> None:
    """Draw lecun-normal kernels, and set biases and the head's kernel to zero."""
    for _, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _lecun_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    if model.head is not None:
        nn.init.zeros_(model.head.weight)


def _lecun_normal_(weight: Tensor) -> None:
    """Draw from a normal of variance 1 / fan_in, cut off at two standard deviations, as jax.nn.initializers does."""
    fan_in = weight[0].numel()
    cut_off_correction = 0.87962566103423978
    std = math.sqrt(1 / fan_in) / cut_off_correction
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
