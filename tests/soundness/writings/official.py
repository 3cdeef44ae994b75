"""Official weights as every writing takes them: `OFFICIAL` by canonical name, `official()` as tensors by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_equiv import MixerConfig
from mixer_equiv.random_weights import draw_params
from tests.soundness.cases import CONFIG

# Square patches, which some operations ask for: 15 tokens of 12 pixels.
SQUARE = CONFIG.replace(patch_size=2, image_size=(6, 10))
SQUARE_IMAGE = SQUARE.in_channels, *SQUARE.image_hw

OFFICIAL: dict[str, np.ndarray] = draw_params(CONFIG, seed=23)


class Affine(NamedTuple):
    """A kernel (in, out), or (ph, pw, channels, hidden) of the stem, or a LayerNorm's scale; and a bias."""

    weight: Tensor
    bias: Tensor


class Block(NamedTuple):
    norm_0: Affine
    tokens_0: Affine
    tokens_1: Affine
    norm_1: Affine
    channels_0: Affine
    channels_1: Affine


class Weights(NamedTuple):
    config: MixerConfig
    stem: Affine
    blocks: tuple[Block, ...]
    norm: Affine
    head: Affine


_BLOCK = (
    "LayerNorm_0",
    "token_mixing/Dense_0",
    "token_mixing/Dense_1",
    "LayerNorm_1",
    "channel_mixing/Dense_0",
    "channel_mixing/Dense_1",
)


def tensor(array: np.ndarray) -> Tensor:
    """A new tensor of torch's default dtype."""
    return torch.tensor(array, dtype=torch.get_default_dtype())


def official(config: MixerConfig = CONFIG, new: Callable[[np.ndarray], Any] = tensor) -> Weights:
    """The weights by part in Flax's orientation, each made by `new`."""
    params = OFFICIAL if config == CONFIG else draw_params(config, seed=23)

    def affine(name: str) -> Affine:
        weight = f"{name}/kernel" if f"{name}/kernel" in params else f"{name}/scale"
        return Affine(new(params[weight]), new(params[f"{name}/bias"]))

    blocks = tuple(Block(*(affine(f"MixerBlock_{i}/{name}") for name in _BLOCK)) for i in range(config.num_blocks))
    return Weights(config, affine("stem"), blocks, affine("pre_head_layer_norm"), affine("head"))


def leaves(weights: Weights) -> list[Tensor]:
    """All tensors in canonical order."""
    affines = [weights.stem, *(affine for block in weights.blocks for affine in block), weights.norm, weights.head]
    return [tensor for affine in affines for tensor in affine]


def of_leaves(config: MixerConfig, tensors: Sequence[Tensor]) -> Weights:
    """The inverse of `leaves`."""
    affines = [Affine(*pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)]
    stem, *inner, norm, head = affines
    width = len(Block._fields)
    blocks = tuple(Block(*inner[i : i + width]) for i in range(0, len(inner), width))
    return Weights(config, stem, blocks, norm, head)
