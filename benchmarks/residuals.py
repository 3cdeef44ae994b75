"""Measure the residuals that the thresholds of `Policy` rest on: `python -m benchmarks.residuals [DRAWS]`.

Draws weights (normal, then Student-t with two degrees of freedom) and images for eight configs of
12 blocks, and compares Flax with torch: as they are, and with torch given the two deviations that
most ports have. Prints the extremes of the float64 residual and of its ratio to the float32 one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from mixer_equiv import MixerConfig
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.frameworks import run_flax, run_torch
from mixer_equiv.equivalence.sides.weights import random_images, random_params

SIZES = [  # patch, image, channels, hidden, tokens_mlp, channels_mlp, classes
    (2, 8, 1, 32, 24, 64, 10),
    (2, 8, 3, 20, 11, 26, 7),
    ((2, 3), (8, 9), 3, 20, 11, 26, 7),
    (4, 16, 3, 48, 24, 96, 5),
    (1, 4, 2, 13, 30, 17, 3),
    ((3, 1), (6, 5), 4, 24, 7, 40, 11),
    (8, 32, 3, 64, 32, 128, 100),
    (2, 6, 5, 9, 5, 6, 4),
]
FIELDS = ("patch_size", "image_size", "in_channels", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "num_classes")
CONFIGS = [MixerConfig(num_blocks=12, **dict(zip(FIELDS, sizes, strict=True))) for sizes in SIZES]
DEVIATIONS = {"none": {}, "erf GELU": {"activation": "gelu"}, "eps 1e-5": {"layer_norm_eps": 1e-5}}


def draws(count: int) -> Iterator[tuple[MixerConfig, dict[str, np.ndarray], np.ndarray]]:
    for seed in range(count):
        config = CONFIGS[seed % len(CONFIGS)]
        params = random_params(config, seed)
        if seed // len(CONFIGS) % 2:
            params = heavy_tailed(params, seed)
        yield config, params, random_images(config, seed)


def heavy_tailed(params: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The same weights with each deviation from the array's mean made Student-t instead of normal."""
    rng = np.random.default_rng([seed, 2])
    return {
        name: array.mean() + array.std() * rng.standard_t(2, array.shape) if array.size > 1 else array
        for name, array in params.items()
    }


def main(count: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in DEVIATIONS}
    for config, params, images in draws(count):
        flax = {d: run_flax(config, params, images.astype(d))["logits"] for d in ("float64", "float32")}
        for name, changes in DEVIATIONS.items():
            ours = {d: run_torch(config.replace(**changes), params, images.astype(d))["logits"] for d in flax}
            at64, at32 = (residual(ours[d], flax[d]) for d in ("float64", "float32"))
            found[name].append((at64, at64 / at32))
    print(f"{count} draws, {len(CONFIGS)} configs of 12 blocks, Flax against torch with a deviation:")
    for name, pairs in found.items():
        residuals, ratios = np.array(pairs).T
        print(
            f"  {name:<9} residual {residuals.min():.1e} to {residuals.max():.1e}, median {np.median(residuals):.1e}; "
            f"over 1e-12: {np.sum(residuals > 1e-12)}; float64 / float32 {ratios.min():.1e} to {ratios.max():.1e}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
