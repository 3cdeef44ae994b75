"""A report as one page of HTML, which needs nothing beside it."""

from __future__ import annotations

import importlib.resources
import math

from mixer_equiv.equivalence.report import HEADLINES, Report, number, readable, shown_by_inputs

# A bar is empty at the first power of ten, and full at the second.
_LEAST, _MOST = -18, 0


def to_html(report: Report) -> str:
    """The page, in UTF-8 when written."""
    import jinja2

    source = importlib.resources.files("mixer_equiv").joinpath("data/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, readable=readable, bar=_bar)
    headline, style = HEADLINES[report.verdict]
    page: str = environment.from_string(source).render(
        report=report,
        headline=headline,
        colour=style.rpartition(" ")[2],
        mark=_bar(report.threshold),
        inputs=shown_by_inputs(report.visible, report.threshold) if report.visible else "",
    )
    return page


def _bar(value: float | None) -> float:
    """How much of a bar a residual fills, in percent: its logarithm between 1e-18 and 1."""
    if value is None or math.isnan(value) or value <= 0:
        return 0.0
    exponent = math.log10(value) if math.isfinite(value) else _MOST
    return round(100 * min(max((exponent - _LEAST) / (_MOST - _LEAST), 0.0), 1.0), 1)
