"""Several reports of `verify` drawn with rich, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from mixer_equiv.equivalence.report import HEADLINES, Report
from mixer_equiv.render.checks import checks_of, reasons_in_short
from mixer_equiv.render.colours import COLOURS


def draw_reports(reports: Mapping[str, Report]) -> Table:
    """A row for each report: its models and file, verdict, residual, causes, and what else is over a threshold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("models", overflow="fold", ratio=3)
    table.add_column("verdict", max_width=18, overflow="fold")
    table.add_column("outputs", max_width=13)
    table.add_column("causes, and what is over its threshold", overflow="fold", ratio=4)
    for file, report in reports.items():
        outputs, *others = checks_of(report)
        over = [f"{check.name}: {check.text}" for check in others if check.is_passed is False]
        table.add_row(
            _lines([" and ".join(report.names), file]),
            Text(HEADLINES[report.verdict], style=f"bold {COLOURS[report.verdict]}"),
            _lines([outputs.text]),
            _lines([*reasons_in_short(report), *over]),
        )
        table.add_section()
    return table


def _lines(texts: Iterable[str]) -> Text:
    return Text("\n".join(printable(text) for text in texts if text))


def printable(text: str) -> str:
    """The text with what a terminal would obey instead of show written as an escape, such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
