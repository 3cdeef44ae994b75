"""A report of `verify` drawn with rich, in colour and to the width of a terminal.

The words are those of `equivalence.report`, which `print(report)` sets as plain text.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.equivalence.report import HEADLINES, Report, details, headline, stage_table
from mixer_equiv.equivalence.text import Paragraph, TextTable
from mixer_equiv.render.colours import COLOURS


def draw_report(report: Report) -> RenderableType:
    """The table of stages, the verdict in its colour, and the details."""
    table = stage_table(report)
    parts: list[RenderableType] = [_rich_table(table)] if table else []
    verdict = Text(headline(report))
    verdict.stylize(f"bold {COLOURS[report.verdict]}", 0, len(HEADLINES[report.verdict]))
    return Group(*parts, verdict, _rich_list(details(report)))


def _rich_table(table: TextTable) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(
            Text(column.heading),
            justify="right" if column.is_right else "left",
            no_wrap=not column.is_wrapped,
            overflow="fold" if column.is_wrapped else "ellipsis",
        )
    for section in table.sections:
        for line in section:
            drawn.add_row(*map(Text, line.cells), style="bold" if line.is_bold else "")
        drawn.add_section()
    return drawn


def _rich_list(entries: Sequence[Paragraph]) -> Table:
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for entry in entries:
        drawn.add_row(Text(f"  {entry.label}"), Text(entry.text))
    return drawn
