"""`in_float32`: whether a side computes in float32 what it computes in float64, but for rounding.

The error that rounding explains is estimated on the NumPy reference: how far its output moves when weights and images
are changed by half a unit in the last place, plus what a LayerNorm of fast variance loses on rows with a large mean.
On 400 random Mixers of four styles of weights the errors of torch and of Flax were at most twice that.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mixer_equiv.equivalence.judge.causes import mean_square_over_variance
from mixer_equiv.equivalence.judge.decide import Judgement
from mixer_equiv.equivalence.judge.evidence import Evidence, Run
from mixer_equiv.equivalence.policy import Policy, residual
from mixer_equiv.equivalence.report import Cause

# Half a unit in the last place of float32, relative.
_HALF_UNIT = 2.0**-24


def in_float32(judgement: Judgement, evidence: Evidence, policy: Policy) -> Judgement:
    """Judge a model as different that is right in float64 and computes something else in float32."""
    if judgement.verdict not in ("equivalent", "equivalent_under"):
        return judgement
    causes = [cause for run in (evidence.a, evidence.b) if (cause := _cause(run, evidence.images, policy))]
    if not causes:
        return judgement
    return dataclasses.replace(
        judgement, verdict="different", causes=(*judgement.causes, *causes), residual_without_causes=None
    )


def _cause(run: Run, images: np.ndarray, policy: Policy) -> Cause | None:
    error = residual(run.float32[run.last], run.float64[run.last])
    # No estimate is below half a unit. An overflow is that of float32, where the reference has numbers as large.
    if error <= policy.float32_error * _HALF_UNIT or (not math.isfinite(error) and _overflows(run)):
        return None
    explained = _explained_error(run, images)
    if error <= policy.float32_error * explained:
        return None
    found = f"an error of {error:.1e} in float32"
    return Cause(
        "float32",
        "code",
        f"at most {policy.float32_error:g} times {explained:.1e}",
        found,
        "outputs",
        f"in {run.side.name}",
    )


def _overflows(run: Run) -> bool:
    """Whether squares of the reference's values, as a LayerNorm takes them, are beyond float32."""
    largest = float(np.finfo(np.float32).max) ** 0.5 / 1000
    return not all(np.abs(stage).max(initial=0) < largest for stage in run.reference.values())


def _explained_error(run: Run, images: np.ndarray) -> float:
    """The relative error of the output that rounding to float32 explains."""
    rng = np.random.default_rng(0)

    def rounded(array: np.ndarray) -> np.ndarray:
        wide = array.astype(np.float64)
        return wide * (1 + _HALF_UNIT * rng.choice([-1.0, 1.0], wide.shape))

    weights = {name: rounded(array) for name, array in run.side.weights.items()}
    moved = run.side.holding(weights, "rounded").reference(rounded(images))
    streams = [stage for name, stage in run.reference.items() if name.startswith(("stem", "MixerBlock"))]
    lost = max(map(mean_square_over_variance, streams))
    return residual(moved[run.last], run.reference[run.last]) + _HALF_UNIT * lost
