"""How far apart two results are, and how far is too far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Rating = Literal["same", "rounding", "undecidable", "apart"]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Thresholds of the verdict, each measured on this model family (README, "Interpreting a report").

    `residual` decides in float64, for the outputs; `gradients` for those, and `sgd` and `adamw` for
    parameters after training steps. `scaling` is the largest ratio of float64 to float32 residual
    at which a failure of `residual` is rounding in ill-conditioned rows and not another function.
    `lost` is the float32 residual that leaves no digits to compare.
    `variation` is how far the outputs must move with the image, relative to their size, to show
    anything. `float32_ratio` bounds the ratio of the sides' errors in low precision before a warning.
    """

    residual: float = 1e-12
    gradients: float = 1e-12
    sgd: float = 1e-12
    adamw: float = 1e-9
    scaling: float = 1e-6
    lost: float = 1e-2
    variation: float = 1e-4
    float32_ratio: float = 4.0

    def is_rounding(self, float64: float, float32: float) -> bool:
        """Whether float32 makes a residual so much larger that it is rounding, and no other function."""
        return float64 <= self.scaling * min(float32, 1.0)

    def rate(self, float64: float, float32: float) -> Rating:
        """What the residuals in both precisions say.

        Where float32 has lost its digits (a residual over `lost`), and float64 is far better off,
        rounding and a difference cannot be told apart.
        """
        if float64 <= self.residual:
            return "same"
        if self.is_rounding(float64, float32):
            return "rounding"
        return "undecidable" if float32 > self.lost and float64 < self.lost * float32 else "apart"


def residual(actual: np.ndarray, expected: np.ndarray, reference: Any = None) -> float:
    """||actual - expected|| / ||reference||, in the 2-norm.

    `reference`, an array or a number, is `expected` by default. Never below a threshold where anything is
    not finite; 0 / 0 is 0.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        scale = float(np.linalg.norm(np.ravel(expected if reference is None else reference)))
        distance = float(np.linalg.norm(np.ravel(actual).astype(np.float64) - np.ravel(expected)))
    if scale == 0:
        return 0.0 if distance == 0 else np.inf
    return distance / scale if np.isfinite(distance) and np.isfinite(scale) else np.inf


# What is smaller than so much of all gradients together is rounding, as that of a bias no output can see.
NEGLIGIBLE = 1e-3


def gradient_residuals(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each gradient ||actual - expected|| / max(||expected||, a thousandth of all of `expected`).

    Infinite where anything is not finite; 0 / 0 is 0.
    """
    whole = float(np.sqrt(sum(np.square(gradient).sum() for gradient in expected.values())))
    return {
        name: residual(actual[name], gradient, max(float(np.linalg.norm(gradient)), NEGLIGIBLE * whole))
        for name, gradient in expected.items()
    }
