"""`by_rounding`: whether a difference is that of constants whose last digits were left out.

A search cannot tell such a constant from the right one, as 0.7978845608 from sqrt(2 / pi), and in a deep model outputs
or gradients can. Where these are over their thresholds, the official program with the code's own constants must have
the same outputs and gradients.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mixer_equiv.equivalence.judge.causes import constraint_causes, deviation_causes
from mixer_equiv.equivalence.judge.decide import Judgement, judge_by_causes
from mixer_equiv.equivalence.judge.evidence import Evidence, Run
from mixer_equiv.equivalence.judge.gradients import common_space, compare_gradients
from mixer_equiv.equivalence.policy import Policy, residual
from mixer_equiv.equivalence.sides.base import WeightedSide
from mixer_equiv.equivalence.sides.replayed import ReplayedSide


def by_rounding(judgement: Judgement, before: Judgement, evidence: Evidence, seed: int, policy: Policy) -> Judgement:
    """The judgement with rounded constants among the causes where these are all of a difference.

    `before` is the judgement by outputs alone.
    """
    runs = evidence.a, evidence.b
    are_rounded = any(run.side.side.all_deviations != run.side.side.deviations for run in runs)
    if not are_rounded or not (judgement.verdict == "different" or judgement.is_rounding):
        return judgement
    residuals = [_unexplained(run, evidence.images, seed, policy) for run in runs]
    if not all(left is not None and left <= policy.residual for left in residuals):
        return judgement
    a, b = (run.side.side for run in runs)
    constraints = [cause for side in (a, b) for cause in constraint_causes(side.name, side.constraints)]
    causes = [*deviation_causes(a, b, to_the_last_digit=True), *constraints]
    notices = tuple(notice for notice in before.notices if notice.fault != "ill_conditioned")
    before = dataclasses.replace(before, notices=notices, is_rounding=False)
    return judge_by_causes(before, causes, max(left for left in residuals if left is not None))


def _unexplained(run: Run, images: np.ndarray, seed: int, policy: Policy) -> float | None:
    """How far a side's outputs are from the program with its constants; None where it has none or other gradients."""
    replayed = ReplayedSide.of(run.side.side)
    if replayed is None:
        return None
    other = WeightedSide(replayed, run.side.checkpoint)
    space = common_space(run.side, other)
    if space is not None:
        gradients = compare_gradients(run.side, other, space, images[:1].astype(np.float64), seed, policy.gradients)
        if not gradients.residual <= policy.gradients:
            return None
    return residual(run.float64[run.last], other.run(images, np.float64)[run.last])
