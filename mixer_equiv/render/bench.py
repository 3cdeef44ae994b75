"""Tables of benchmark results for a terminal; Markdown and CSV are in `bench.export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mixer_equiv.bench.export import (
    COLUMNS,
    PlainResult,
    PlainRow,
    condition_lines,
    group_by_cell,
    note_lines,
    refusal_lines,
    row_texts,
)

Columns = Mapping[str, Callable[[PlainRow], str]]


def _without(columns: Columns, *headings: str) -> Columns:
    return {heading: text_of for heading, text_of in columns.items() if heading not in headings}


# All columns need a terminal of about 130, the others one of 80 and of 60.
NARROW = _without(COLUMNS, "quartiles", "GFLOP/s", "error")
NARROWEST = _without(NARROW, "of peak", "memory", "compile")


@dataclasses.dataclass(frozen=True)
class Tables:
    """One table for each cell, with as many columns as fit; below, the refusals, notes and conditions.

    `result` is what `bench.export.to_dict` gives.
    """

    result: PlainResult

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        choices = [self._tables(columns) for columns in (COLUMNS, NARROW, NARROWEST)]
        fitting = [tables for tables in choices if _least_width(tables, console, options) <= options.max_width]
        yield from (fitting or choices[-1:])[0]
        yield Text("\n".join([*refusal_lines(self.result), *note_lines(self.result), *condition_lines(self.result)]))

    def _tables(self, columns: Columns) -> list[Table]:
        return [_table(title, rows, columns) for title, rows in group_by_cell(self.result["rows"])]


def _least_width(tables: list[Table], console: Console, options: ConsoleOptions) -> int:
    """The width that the widest table needs when names of programs are wrapped, and nothing else is."""
    endless = options.update_width(1000)
    needed = 0
    for table in tables:
        program = table.columns[0]
        longest = max(len(str(cell)) for cell in program.cells)
        whole = Measurement.get(console, endless, table).maximum
        needed = max(needed, whole - max(longest - (program.min_width or 0), 0))
    return needed


def _table(title: str, rows: list[PlainRow], columns: Columns) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    # The first column is as wide as its longest word or name, so that none is broken.
    words = [word for row in rows for word in (row["program"].partition(" (")[0], *row["program"].split())]
    table.add_column("program", min_width=max(map(len, words)))
    for heading in list(columns)[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = "bold red" if row["refused"] else "bold" if row["ours"] else ""
        table.add_row(*row_texts(row, columns), style=style)
    return table
