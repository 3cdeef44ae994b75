"""`gather`: run both sides on the same images, and keep every stage in both precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mixer_equiv.arrays.interop import DTYPES
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.config import CONVENTIONS
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.report import Stage
from mixer_equiv.equivalence.sides.base import WeightedSide
from mixer_equiv.equivalence.sides.drawn_weights import random_images
from mixer_equiv.equivalence.sides.runners import RUNNER_NAMES, Stages


@dataclasses.dataclass(frozen=True)
class Run:
    """The stages of one side in three precisions, of which `low` may be float32, and those of the reference."""

    side: WeightedSide
    float64: Stages
    float32: Stages
    low: Stages
    reference: Stages

    @property
    def last(self) -> str:
        """The stage that decides: the logits, or without a head the pooled features."""
        return list(self.reference)[-1]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The runs of both sides on the same images.

    `aligned` is side b run with side a's conventions, None where they are the same. `variation`
    is how far the reference's output moves to another image, relative to its size. `dtype` is that of
    the runs in low precision on `images` (batch, height, width, channels).
    """

    a: Run
    b: Run
    aligned: Run | None
    variation: float
    images: np.ndarray
    dtype: str

    @property
    def last(self) -> str:
        return self.a.last

    @property
    def num_images(self) -> int:
        return len(self.images)

    def stages(self) -> tuple[Stage, ...]:
        """The float64 residuals of every stage, with each side's own conventions."""
        a, b = self.a, self.b
        return tuple(
            Stage(
                name,
                residual(a.float64[name], b.float64[name], a.reference[name]),
                residual(a.float64[name], a.reference[name]),
                residual(b.float64[name], b.reference[name]),
            )
            for name in a.reference
            if name in a.float64 and name in b.float64
        )

    def residuals(self) -> tuple[float, float]:
        """The largest residual of the outputs in float64, and in float32, once conventions are aligned.

        Among the sides, and of each side against the reference of its own conventions.
        """
        return self._worst("float64"), self._worst("float32")

    def _worst(self, dtype: str) -> float:
        def output(run: Run) -> np.ndarray:
            return getattr(run, dtype)[self.last]

        between = residual(output(self.a), output(self.aligned or self.b))
        return max(between, *(residual(output(run), run.reference[self.last]) for run in (self.a, self.b)))


def gather(
    a: WeightedSide, b: WeightedSide, images: np.ndarray, seed: int, dtype: str, on_step: Callable[[str], None]
) -> Evidence:
    """Run both sides on `images` (batch, height, width, channels), telling `on_step` what begins.

    `dtype`, by name, is the low precision whose errors are to be shown beside float32.
    """

    def stages(side: WeightedSide, dtype: np.dtype) -> Stages:
        on_step(f"{RUNNER_NAMES[side.side.runner]} in {dtype.name}")
        return side.run(images, dtype)

    def run(side: WeightedSide, reference: Stages | None = None) -> Run:
        if reference is None:
            on_step(f"{RUNNER_NAMES['reference']} in float64")
            reference = side.reference(images)
        if side.side.runner == "reference":  # it computes in float64 alone
            return Run(side, reference, reference, reference, reference)
        float64, float32 = stages(side, np.dtype(np.float64)), stages(side, np.dtype(np.float32))
        low = float32 if dtype == "float32" else stages(side, DTYPES[dtype])
        return Run(side, float64, float32, low, reference)

    run_a = run(a)
    aligned_config = b.config.replace(**{name: getattr(a.config, name) for name in CONVENTIONS})
    same_weights = not bit_differences(a.weights, b.weights)
    run_b = run(b, run_a.reference if b.config == aligned_config and same_weights else None)
    aligned = None
    if b.config != aligned_config:
        aligned = run(b.following(aligned_config), run_a.reference if same_weights else None)
    another = random_images(a.config, seed + 1)[:1]
    moved = a.reference(another)[run_a.last]
    variation = residual(moved[0], run_a.reference[run_a.last][0])
    return Evidence(run_a, run_b, aligned, variation, images, dtype)
