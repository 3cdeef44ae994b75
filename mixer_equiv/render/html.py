"""A report of `verify` as one page of HTML, which loads nothing else."""

from __future__ import annotations

import math

from mixer_equiv.equivalence.report import HEADLINES, Report, number, readable, shown_by_inputs
from mixer_equiv.render.colours import COLOURS

# Powers of ten at which a bar is empty, and full.
_EMPTY_BAR, _FULL_BAR = -18, 0


def to_html(report: Report) -> str:
    """Write `report` as a page of HTML; encode it in UTF-8."""
    import importlib.resources

    import jinja2

    source = importlib.resources.files("mixer_equiv.render").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, readable=readable, bar=_bar)
    page: str = environment.from_string(source).render(
        report=report,
        headline=HEADLINES[report.verdict],
        colour=COLOURS[report.verdict],
        mark=_bar(report.threshold),
        inputs=shown_by_inputs(report.visible, report.threshold) if report.visible else "",
    )
    return page


def _bar(value: float | None) -> float:
    """How much of a bar a residual fills, in percent, by its logarithm."""
    if value is None or math.isnan(value) or value <= 0:
        return 0.0
    exponent = math.log10(value) if math.isfinite(value) else _FULL_BAR
    return round(100 * min(max((exponent - _EMPTY_BAR) / (_FULL_BAR - _EMPTY_BAR), 0.0), 1.0), 1)
