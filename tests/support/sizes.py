"""Sizes of the small Mixers that tests of `equivalence` share, and weights for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_equiv import MixerConfig
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params

CONFIG = DEFAULT_CONFIG
SMALL = CONFIG.replace(num_blocks=2)
IMAGE = CONFIG.in_channels, *CONFIG.image_hw
EQUAL = MixerConfig(
    num_classes=16,
    num_blocks=11,
    patch_size=4,
    image_size=16,
    in_channels=4,
    hidden_dim=16,
    tokens_mlp_dim=16,
    channels_mlp_dim=16,
)


def in_float32(config: MixerConfig, seed: int) -> dict[str, np.ndarray]:
    """Random weights in the dtype of a new model."""
    return {name: array.astype(np.float32) for name, array in random_params(config, seed).items()}


def names_and_axes(layout: Any, depth: int) -> dict[str, tuple[str, str]]:
    return {name: (b.foreign, b.row.foreign_axes) for name, b in layout.bindings(depth).items()}
