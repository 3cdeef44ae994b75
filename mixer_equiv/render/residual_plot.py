"""The residuals of a report by stage, on a logarithmic scale, as numbers for a drawing. Start at `residual_plot`.

Places across are in percent and places down in pixels, so that the drawing fits any width and its text stays readable.
"""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from mixer_equiv.equivalence.report import Report, Stage, readable
from mixer_equiv.render.checks import in_words

HEIGHT = 300
_TOP, _BOTTOM = 14, 246
_LEFT, _RIGHT = 11.0, 98.0
_LOWEST = -18  # the power of ten at which 0 is drawn
_HIGHEST = 12  # and that at which all larger ones are
_DECADES_OF_A_TICK = 3
_MOST_BLOCK_NUMBERS = 12
_LONGEST_NAME = 20


class Mark(NamedTuple):
    """A stage: its place, and what is said of it."""

    x: float
    y: float
    is_over: bool
    text: str


class Tick(NamedTuple):
    """A label of an axis, at a place across or down."""

    place: float
    label: str


@dataclasses.dataclass(frozen=True)
class ResidualPlot:
    """What is drawn: a mark for each stage and lines between them, ticks, the threshold, and all of it in words."""

    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    blocks: tuple[Tick, ...]
    threshold: Tick
    first: str
    last: str
    description: str
    height: int = HEIGHT
    left: float = _LEFT
    right: float = _RIGHT
    bottom: float = _BOTTOM

    @property
    def lines(self) -> tuple[tuple[Mark, Mark], ...]:
        """Each mark with the next one."""
        return tuple(zip(self.marks, self.marks[1:], strict=False))


def residual_plot(report: Report) -> ResidualPlot | None:
    """Place the residuals between the two sides; None where no stage was run."""
    if not report.stages:
        return None
    finite = [stage.residual for stage in report.stages if math.isfinite(stage.residual)]
    decades = math.log10(max([*finite, 1.0]))
    highest = min(math.ceil(decades / _DECADES_OF_A_TICK) * _DECADES_OF_A_TICK, _HIGHEST)
    labels = {power: f"1e{power}" for power in range(_LOWEST, highest + 1, _DECADES_OF_A_TICK)} | {_LOWEST: "0"}
    if len(finite) < len(report.stages):
        highest += _DECADES_OF_A_TICK
        labels[highest] = "∞, NaN"
    places = [_across(i, len(report.stages)) for i in range(len(report.stages))]
    marks = [
        Mark(
            x,
            _down(s.residual, highest),
            not s.residual <= report.threshold,
            f"{readable(s.name)}: {in_words(s.residual)}",
        )
        for x, s in zip(places, report.stages, strict=True)
    ]
    return ResidualPlot(
        marks=tuple(marks),
        ticks=tuple(Tick(_down(10.0**power, highest), label) for power, label in labels.items()),
        blocks=_block_ticks(report.stages, places),
        threshold=Tick(_down(report.threshold, highest), f"threshold {report.threshold:g}"),
        first=_short(report.stages[0].name),
        last=_short(report.stages[-1].name),
        description=_describe(report),
    )


def _across(i: int, count: int) -> float:
    return round(_LEFT + 2 + (_RIGHT - _LEFT - 4) * i / max(count - 1, 1), 2)


def _down(residual: float, highest: int) -> float:
    """The place of a residual; 0 is drawn at the bottom, and what is no number at the top."""
    exponent = math.log10(max(residual, 10.0**_LOWEST)) if math.isfinite(residual) else highest
    share = min(max((exponent - _LOWEST) / (highest - _LOWEST), 0.0), 1.0)
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)


def _block_ticks(stages: Sequence[Stage], places: Sequence[float]) -> tuple[Tick, ...]:
    """The numbers of blocks at the first stage of each, or of every so many where there is no room for all."""
    first: dict[str, float] = {}
    for stage, place in zip(stages, places, strict=True):
        block = re.match(r"MixerBlock_(\d+)/", stage.name)
        if block:
            first.setdefault(block[1], place)
    step = -(-len(first) // _MOST_BLOCK_NUMBERS) or 1
    return tuple(Tick(place, label) for label, place in list(first.items())[::step])


def _short(stage: str) -> str:
    """The name of a stage, as far as there is room for it below the axis."""
    return textwrap.shorten(readable(stage), _LONGEST_NAME, placeholder="…")


def _describe(report: Report) -> str:
    over = [stage.name for stage in report.stages if not stage.residual <= report.threshold]
    first, last = report.stages[0], report.stages[-1]
    where = (
        f"over the threshold of {report.threshold:g} from {readable(over[0])} on"
        if over
        else (f"all below the threshold of {report.threshold:g}")
    )
    return (
        f"Residuals of {len(report.stages)} stages on a logarithmic scale: {in_words(first.residual)} at "
        f"{readable(first.name)}, {in_words(last.residual)} at {readable(last.name)}, {where}."
    )
