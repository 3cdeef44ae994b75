"""What two subjects compute for the same images, at every stage and in both precisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from mixer_equiv.equivalence.compare import differing, residual
from mixer_equiv.equivalence.programs import PROGRAM_NAMES, Taps
from mixer_equiv.equivalence.subject import Subject
from mixer_equiv.report import Stage


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Both sides' taps on the same images: the oracle's, float64 and float32."""

    a: Subject
    b: Subject
    images: np.ndarray
    reference_a: Taps
    reference_b: Taps
    taps_a: Taps
    taps_b: Taps
    float32_a: Taps
    float32_b: Taps

    @property
    def last(self) -> str:
        """The stage that decides: the logits, or without a head the pooled features."""
        return list(self.reference_a)[-1]

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name,
                residual(self.taps_a[name], self.taps_b[name], self.reference_a[name]),
                residual(self.taps_a[name], self.reference_a[name]),
                residual(self.taps_b[name], self.reference_b[name]),
            )
            for name in self.reference_a
        )


def gather(a: Subject, b: Subject, images: np.ndarray, on_step: Callable[[str], None]) -> Evidence:
    """Run both subjects on `images` (batch, height, width, channels), telling `on_step` what begins."""

    def run(side: Subject, dtype: type, program: str | None = None) -> Taps:
        on_step(f"{PROGRAM_NAMES[program or side.program]} in {np.dtype(dtype).name}")
        return side.run(images, dtype, program=program)

    reference_a = run(a, np.float64, "reference")
    same = a.config == b.config and not differing(a.weights, b.weights)
    reference_b = reference_a if same else run(b, np.float64, "reference")
    float64 = run(a, np.float64), run(b, np.float64)
    float32 = run(a, np.float32), run(b, np.float32)
    return Evidence(a, b, images, reference_a, reference_b, *float64, *float32)
