"""Compare the gradients of two sides, parameter by parameter, in float64.

Weights are only relabelled between them, so gradients are converted by the same layouts. What a
layout has once for several official parameters has the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.policy import gradient_residuals
from mixer_equiv.equivalence.record.derivatives import Derivatives
from mixer_equiv.equivalence.report import Gradients
from mixer_equiv.equivalence.sides.base import WeightedSide
from mixer_equiv.layouts import LINEN, Layout

Arrays = Mapping[str, np.ndarray]


def compare_gradients(
    a: WeightedSide, b: WeightedSide, space: Layout, images: np.ndarray, seed: int, threshold: float
) -> Gradients:
    """Compare the gradients of a random linear function of the outputs for `images`, by the names of `space`.

    The largest difference counts. Where it is over the `threshold`, float32 is compared as well.
    """
    cotangent = random_cotangent(a.config, len(images), seed)
    nonlinear: list[str] = []

    def apart(dtype: Any) -> dict[str, float]:
        made = [side.gradients(images.astype(dtype), cotangent.astype(dtype)) for side in (a, b)]
        nonlinear.extend(
            name for gradients in made if isinstance(gradients, Derivatives) for name in gradients.nonlinear
        )
        ours, theirs = (_in(space, side, gradients) for side, gradients in zip((a, b), made, strict=True))
        return gradient_residuals(theirs, ours)

    distances = apart(np.float64)
    worst = max(distances, key=lambda name: (not np.isfinite(distances[name]), distances[name]))
    is_over = not distances[worst] <= threshold
    float32 = max(apart(np.float32).values()) if is_over else None
    return Gradients(
        worst, distances[worst], threshold, len(distances), len(images), float32, distances, tuple(nonlinear)
    )


def common_space(a: WeightedSide, b: WeightedSide) -> Layout | None:
    """The layout in which the parameters of both can be compared: that of the side with fewer parameters.

    None where the official parameters are not those of one side, or each has fewer in its own way.
    """
    if not (a.side.is_named and b.side.is_named):
        return None
    if all(side.layout.constraints for side in (a, b)) and a.layout.rows != b.layout.rows:
        return None
    return next((side.layout for side in (a, b) if side.layout.constraints), LINEN)


def random_cotangent(config: MixerConfig, count: int, seed: int) -> np.ndarray:
    """Draw the weights (count, classes) of a random linear function of the outputs."""
    width = config.num_classes or config.hidden_dim
    return np.random.default_rng([seed, 3]).standard_normal((count, width))


def gradients_in(
    space: Layout, side: WeightedSide, images: np.ndarray, cotangent: np.ndarray, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """The gradients of the sum of the outputs times `cotangent`, computed in `dtype`, by the names of `space`."""
    return dict(_in(space, side, side.gradients(images.astype(dtype), cotangent.astype(dtype))))


def _in(space: Layout, side: WeightedSide, gradients: Arrays) -> Arrays:
    """Relabel gradients from the side's own names to those of `space`."""
    if side.layout is space:
        return gradients
    canonical = relabel(gradients, side.layout, LINEN, side.config)
    if space is LINEN:
        return canonical
    result: dict[str, np.ndarray] = {}
    for name, binding in space.bindings(side.config.num_blocks).items():
        if name in canonical and not binding.is_absent:
            (own,) = relabel({name: canonical[name]}, LINEN, space, side.config, only=[name]).values()
            result[binding.foreign] = result.get(binding.foreign, 0.0) + own
    return result
