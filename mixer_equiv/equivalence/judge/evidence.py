"""What two subjects compute for the same images, at every stage and in both precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mixer_equiv.arrays.interop import DTYPES
from mixer_equiv.checkpoints.differences import differing
from mixer_equiv.config import CONVENTIONS
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.report import Stage
from mixer_equiv.equivalence.sides.frameworks import PROGRAM_NAMES, Taps
from mixer_equiv.equivalence.sides.side import Subject
from mixer_equiv.equivalence.sides.weights import random_images


@dataclasses.dataclass(frozen=True)
class Run:
    """One side's taps, by its own program in three precisions, of which `low` may be float32, and by the reference."""

    side: Subject
    float64: Taps
    float32: Taps
    low: Taps
    reference: Taps

    @property
    def last(self) -> str:
        """The stage that decides: the logits, or without a head the pooled features."""
        return list(self.reference)[-1]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Both sides' runs on the same images.

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
        """Float64 residuals of every stage, as the sides are."""
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
    a: Subject, b: Subject, images: np.ndarray, seed: int, dtype: str, on_step: Callable[[str], None]
) -> Evidence:
    """Run both subjects on `images` (batch, height, width, channels), telling `on_step` what begins.

    `dtype`, by name, is the low precision whose errors are to be shown beside float32.
    """

    def taps(side: Subject, dtype: np.dtype, program: str | None = None) -> Taps:
        on_step(f"{PROGRAM_NAMES[program or side.program]} in {dtype.name}")
        return side.run(images, dtype, program=program)

    def run(side: Subject, reference: Taps | None = None) -> Run:
        known = taps(side, np.dtype(np.float64), "reference") if reference is None else reference
        float64, float32 = taps(side, np.dtype(np.float64)), taps(side, np.dtype(np.float32))
        low = float32 if dtype == "float32" else taps(side, DTYPES[dtype])
        return Run(side, float64, float32, low, known)

    run_a = run(a)
    changed = {name: getattr(a.config, name) for name in CONVENTIONS}
    alike = b.config == b.config.replace(**changed)
    same_weights = not differing(a.weights, b.weights)
    run_b = run(b, run_a.reference if alike and same_weights else None)
    aligned = None
    if not alike:
        follower = b.replace(config=b.config.replace(**changed), module=None, candidate=None, found=None)
        aligned = run(follower, run_a.reference if same_weights else None)
    another = random_images(a.config, seed + 1)[:1].astype(np.float64)
    moved = a.run(another, np.float64, program="reference")[run_a.last]
    variation = residual(moved[0], run_a.reference[run_a.last][0])
    return Evidence(run_a, run_b, aligned, variation, images, dtype)
