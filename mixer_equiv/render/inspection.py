"""An inspection of a checkpoint drawn with rich. Its words are those of `checkpoints.inspection`."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixer_equiv.checkpoints.inspection import ArrayTable, Inspection, array_table, summary

_TEXT_COLUMNS = ("array", "dtype", "seen")  # all others are of numbers, and set to the right


def draw_inspection(inspection: Inspection) -> RenderableType:
    """The summary, the table of arrays, findings and notes."""
    lines = [Text.assemble(("warning: ", "bold yellow"), str(finding)) for finding in inspection.findings]
    lines += [Text(f"note: {note}") for note in inspection.notes]
    return Group(_summary(inspection), _table(array_table(inspection)), *lines)


def _summary(inspection: Inspection) -> Table:
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold")
    drawn.add_column()
    for label, text in summary(inspection).items():
        drawn.add_row(label, Text(text))
    return drawn


def _table(table: ArrayTable) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in table.headings:
        drawn.add_column(
            heading,
            justify="left" if heading in _TEXT_COLUMNS else "right",
            overflow="fold" if heading == "array" else "ellipsis",
            no_wrap=heading not in _TEXT_COLUMNS,
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn
