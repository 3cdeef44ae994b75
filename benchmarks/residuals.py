"""The residuals that the thresholds of `Policy` rest on: `python -m benchmarks.residuals [DRAWS]`.

Draws weights (normal, then Student-t with two degrees of freedom) and images for eight configs of 12 blocks. Compares
Flax with torch as they are, and with each of the two deviations that most ports have in torch. Prints the extremes of
the float64 residual and of its ratio to the float32 one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv import MixerConfig
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.equivalence.sides.runners import run_flax, run_torch


class Sizes(NamedTuple):
    """The sizes of a config of 12 blocks, in the order of the table below."""

    patch: int | tuple[int, int]
    image: int | tuple[int, int]
    channels: int
    hidden: int
    tokens_mlp: int
    channels_mlp: int
    classes: int

    def config(self) -> MixerConfig:
        return MixerConfig(
            num_classes=self.classes,
            num_blocks=12,
            patch_size=self.patch,
            image_size=self.image,
            in_channels=self.channels,
            hidden_dim=self.hidden,
            tokens_mlp_dim=self.tokens_mlp,
            channels_mlp_dim=self.channels_mlp,
        )


DEEP_CONFIGS = [
    sizes.config()
    for sizes in (
        Sizes(2, 8, 1, 32, 24, 64, 10),
        Sizes(2, 8, 3, 20, 11, 26, 7),
        Sizes((2, 3), (8, 9), 3, 20, 11, 26, 7),
        Sizes(4, 16, 3, 48, 24, 96, 5),
        Sizes(1, 4, 2, 13, 30, 17, 3),
        Sizes((3, 1), (6, 5), 4, 24, 7, 40, 11),
        Sizes(8, 32, 3, 64, 32, 128, 100),
        Sizes(2, 6, 5, 9, 5, 6, 4),
    )
]
COMMON_DEVIATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "erf GELU": {"activation": "gelu"},
    "eps 1e-5": {"layer_norm_eps": 1e-5},
}


class ResidualCase(NamedTuple):
    """A config with float64 canonical weights, and images (batch, height, width, channels)."""

    config: MixerConfig
    params: dict[str, np.ndarray]
    images: np.ndarray


def make_draws(count: int) -> Iterator[ResidualCase]:
    """Yield `count` draws: every config with normal weights, then every config with heavy-tailed ones, and again."""
    for seed in range(count):
        config = DEEP_CONFIGS[seed % len(DEEP_CONFIGS)]
        params = random_params(config, seed)
        if seed // len(DEEP_CONFIGS) % 2:
            params = heavy_tailed(params, seed)
        yield ResidualCase(config, params, random_images(config, seed))


def heavy_tailed(params: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """ResidualCase weights with the same mean and spread of each array, Student-t instead of normal."""
    rng = np.random.default_rng([seed, 2])
    return {
        name: array.mean() + array.std() * rng.standard_t(2, array.shape) if array.size > 1 else array
        for name, array in params.items()
    }


def main(count: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMON_DEVIATIONS}
    for config, params, images in make_draws(count):
        flax = {d: run_flax(config, params, images.astype(d))["logits"] for d in ("float64", "float32")}
        for name, changes in COMMON_DEVIATIONS.items():
            torch = {d: run_torch(config.replace(**changes), params, images.astype(d))["logits"] for d in flax}
            at64, at32 = (residual(torch[d], flax[d]) for d in ("float64", "float32"))
            found[name].append((at64, at64 / at32))
    print(f"{count} draws, {len(DEEP_CONFIGS)} configs of 12 blocks, Flax against torch with a deviation:")
    for name, pairs in found.items():
        residuals, ratios = np.array(pairs).T
        print(
            f"  {name:<9} residual {residuals.min():.1e} to {residuals.max():.1e}, median {np.median(residuals):.1e}; "
            f"over 1e-12: {np.sum(residuals > 1e-12)}; float64 / float32 {ratios.min():.1e} to {ratios.max():.1e}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
