"""The parts of a verification, and whether each is within its threshold: rows of one report, columns of several.

Start at `checks_of`. Knows neither terminals nor pages.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import sys
from collections.abc import Iterable

from mixer_equiv.equivalence.report import HEADLINES, Report, Stage, number, readable

CHECKS = ("outputs", "stages", "gradients", "training", "weights")

NOT_COMPARED = "not compared"


@dataclasses.dataclass(frozen=True)
class Check:
    """One part: `is_passed` is None where it was not compared, and `residual` where it has none."""

    name: str
    text: str = NOT_COMPARED
    is_passed: bool | None = None
    residual: float | None = None


def checks_of(report: Report) -> tuple[Check, ...]:
    """All parts in the order of `CHECKS`, compared or not."""
    return _outputs(report), _stages(report), _gradients(report), _training(report), _weights(report)


def _outputs(report: Report) -> Check:
    if report.residual is None:
        return Check("outputs")
    return _held(Check("outputs", residual=report.residual), report.threshold)


def _stages(report: Report) -> Check:
    if not report.stages:
        return Check("stages")
    over = [stage.name for stage in report.stages if not _is_within(stage, report.threshold)]
    worst = max((stage.residual for stage in report.stages), key=sortable)
    text = f"over {report.threshold:g} from {readable(over[0])} on" if over else f"all {len(report.stages)} within"
    return Check("stages", text, not over, worst)


def _gradients(report: Report) -> Check:
    if report.gradients is None:
        return Check("gradients")
    return _held(Check("gradients", residual=report.gradients.residual), report.gradients.threshold)


def _training(report: Report) -> Check:
    """The optimiser whose parameters are furthest apart, relative to its threshold."""
    if not report.training:
        return Check("training")
    worst = max(report.training, key=lambda trained: sortable(trained.residual) / (trained.threshold or 1.0))
    held = _held(Check("training", residual=worst.residual), worst.threshold)
    return dataclasses.replace(held, text=f"{worst.label}: {held.text}")


def _weights(report: Report) -> Check:
    trips = [side.round_trip for side in report.sides if side.round_trip is not None]
    if not trips:
        ported = [cause for cause in report.causes if cause.kind == "port"]
        return Check("weights", "differ", False) if ported else Check("weights", report.weights or NOT_COMPARED)
    differ = sum(not trip for trip in trips)
    return Check(
        "weights", f"{differ} of {len(trips)} round trips not bit-identical" if differ else "bit-identical", not differ
    )


def _held(check: Check, threshold: float) -> Check:
    """The check with its residual held against a threshold."""
    is_within = check.residual is not None and check.residual <= threshold
    text = f"{in_words(check.residual)}, {'within' if is_within else 'over'} {threshold:g}"
    return dataclasses.replace(check, text=text, is_passed=is_within)


def _is_within(stage: Stage, threshold: float) -> bool:
    return all(residual <= threshold for residual in (stage.residual, stage.residual_a, stage.residual_b))


def in_words(residual: float | None) -> str:
    """A residual in words; JSON does not tell NaN from infinity, and neither do pages."""
    return number(residual) if residual is None or math.isfinite(residual) else "not finite"


def sortable(residual: float) -> float:
    """A number in the order of residuals, in which what is not finite is the largest."""
    return residual if math.isfinite(residual) else sys.float_info.max


def reasons_in_short(report: Report) -> tuple[str, ...]:
    """The causes, or else the first reason."""
    causes = [f"{readable(cause.name)}: found {cause.found}, expected {cause.expected}" for cause in report.causes]
    return tuple(causes) or report.reasons[:1]


def count_headlines(reports: Iterable[Report]) -> dict[str, int]:
    """How many reports have each verdict, by its headline, in the order of verdicts."""
    counts = collections.Counter(report.verdict for report in reports)
    return {headline: counts[verdict] for verdict, headline in HEADLINES.items() if counts[verdict]}
