"""A report of `verify` drawn with rich, in colour and to the width of a terminal.

The words are those of `equivalence.report`, which `print(report)` sets as plain text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from mixer_equiv.equivalence.report import HEADLINES, Report, details, headline, made_by, stage_table
from mixer_equiv.equivalence.text import Paragraph, TextTable, column_widths, wrap
from mixer_equiv.render.colours import COLOURS


def draw_report(report: Report) -> RenderableType:
    """The table of stages, the verdict in its colour, and the details."""
    table = stage_table(report)
    parts: list[RenderableType] = [_StageTable(table)] if table else []
    verdict = Text(headline(report))
    verdict.stylize(f"bold {COLOURS[report.verdict]}", 0, len(HEADLINES[report.verdict]))
    return Group(*parts, verdict, _rich_list([*details(report), *made_by(report)]))


@dataclasses.dataclass(frozen=True)
class _StageTable:
    """The table of stages, its columns as wide as the plain text's would be at the width of the terminal."""

    table: TextTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = column_widths(self.table, options.max_width)
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column, width in zip(self.table.columns, widths, strict=True):
            heading = _wrapped([column.heading], [width])[0]
            drawn.add_column(heading, justify="right" if column.is_right else "left", width=width, no_wrap=True)
        for section in self.table.sections:
            for line in section:
                drawn.add_row(*_wrapped(line.cells, widths), style="bold" if line.is_bold else "")
            drawn.add_section()
        yield drawn


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> list[Text]:
    return [Text("\n".join(wrap(cell, width))) for cell, width in zip(cells, widths, strict=True)]


def _rich_list(entries: Sequence[Paragraph]) -> Table:
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for entry in entries:
        drawn.add_row(Text(f"  {entry.label}"), Text(entry.text))
    return drawn
