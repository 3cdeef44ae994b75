"""Residuals between two results, and the thresholds that a verdict holds them against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Rating = Literal["same", "rounding", "undecidable", "apart"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Thresholds of the verdict, each measured on this model family (the documentation, "Bug or rounding?").

    `residual` decides in float64, for the outputs; `gradients` for those, and `sgd` and `adamw` for
    parameters after training steps. `scaling` is the largest ratio of float64 to float32 residual
    at which a failure of `residual` is rounding in ill-conditioned rows and not another function.
    `lost` is the float32 residual that leaves no digits to compare.
    `variation` is how far the outputs must move with the image, relative to their size, to show
    anything. `float32_ratio` bounds the ratio of the sides' errors in low precision before a warning, and
    `float32_error` a side's error in float32 relative to what rounding explains, before it is another function.
    """

    residual: float = 1e-12
    gradients: float = 1e-12
    sgd: float = 1e-12
    adamw: float = 1e-9
    scaling: float = 1e-6
    lost: float = 1e-2
    variation: float = 1e-4
    float32_ratio: float = 4.0
    float32_error: float = 8.0

    def is_rounding(self, float64: float, float32: float) -> bool:
        """Whether the float32 residual is so much larger that the float64 one must be rounding."""
        return float64 <= self.scaling * min(float32, 1.0)

    def rate(self, float64: float, float32: float) -> Rating:
        """Rate a difference by its residuals in both precisions.

        Where float32 has no digits left (a residual over `lost`) and float64 is far better, rounding cannot be told
        from a difference.
        """
        if float64 <= self.residual:
            return "same"
        if self.is_rounding(float64, float32):
            return "rounding"
        return "undecidable" if float32 > self.lost and float64 < self.lost * float32 else "apart"


def residual(actual: np.ndarray, expected: np.ndarray, reference: Any = None) -> float:
    """Return ||actual - expected|| / ||reference||, in the 2-norm.

    `reference`, an array or a number, is `expected` by default. The residual is infinite where anything is not
    finite; 0 / 0 is 0.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scale = float(np.linalg.norm(np.ravel(expected if reference is None else reference)))
        distance = float(np.linalg.norm(np.ravel(actual).astype(np.float64) - np.ravel(expected)))
    if scale == 0:
        return 0.0 if distance == 0 else np.inf
    return distance / scale if np.isfinite(distance) and np.isfinite(scale) else np.inf


# Gradients below this fraction of the total norm count as rounding noise, such as that of a bias on which no output
# depends.
NEGLIGIBLE = 1e-3


def gradient_residuals(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return, for each gradient, ||actual - expected|| / max(||expected||, NEGLIGIBLE times the norm of them all).

    The residual is infinite where anything is not finite; 0 / 0 is 0.
    """
    whole = float(np.sqrt(sum(np.square(gradient).sum() for gradient in expected.values())))
    return {
        name: residual(actual[name], gradient, max(float(np.linalg.norm(gradient)), NEGLIGIBLE * whole))
        for name, gradient in expected.items()
    }
