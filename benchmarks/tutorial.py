"""The check that a well-known tutorial's tests make, rebuilt: parameter count and output shape over 128 shapes.

Start reading at `check_as_tutorial`.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import torch

from mixer_equiv import MixerConfig
from mixer_equiv.bench.peers_flax import official_mixer
from mixer_equiv.bench.peers_torch import TutorialMixer

GRID_FIELDS = (
    "image_size",
    "patch_size",
    "hidden_dim",
    "num_blocks",
    "num_classes",
    "tokens_mlp_dim",
    "channels_mlp_dim",
)
GRID = list(itertools.product((6, 12), (2, 3), (4, 5), (1, 2), (4, 8), (2, 4), (3, 6)))
_FIELD_VALUES: list[dict[str, Any]] = [dict(zip(GRID_FIELDS, point, strict=True)) for point in GRID]
TUTORIAL_CONFIGS = [MixerConfig(**values) for values in _FIELD_VALUES]
IMAGES_PER_CASE = 11


def check_as_tutorial(config: MixerConfig) -> None:
    """Check that a fresh Flax and a fresh torch Mixer have equally many parameters, and outputs of one shape.

    As in the tutorial, nothing is compiled and no number is compared. Raises `AssertionError`.
    """
    (height, width), channels = config.image_hw, config.in_channels
    for_images, for_weights = jax.random.split(jax.random.key(0))
    images = jax.random.normal(for_images, (IMAGES_PER_CASE, height, width, channels))
    in_flax = official_mixer(config)
    variables = in_flax.init(for_weights, images)
    in_torch = TutorialMixer(config)
    with torch.no_grad():
        seen = in_torch(torch.rand(IMAGES_PER_CASE, channels, height, width)).shape
    counts = {
        sum(leaf.size for leaf in jax.tree.leaves(variables)),
        sum(parameter.numel() for parameter in in_torch.parameters()),
    }
    assert counts == {config.num_parameters}, counts
    outputs: Any = in_flax.apply(variables, images)
    assert outputs.shape == seen == (IMAGES_PER_CASE, config.num_classes)
