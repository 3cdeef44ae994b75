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

# A terminal of 80 columns has no room for all columns; about 130 have.
NARROW = {heading: say for heading, say in COLUMNS.items() if heading not in ("quartiles", "GFLOP/s", "error")}


@dataclasses.dataclass(frozen=True)
class Tables:
    """One table for each cell, with all columns if they fit; below, the refusals, notes and conditions.

    `result` is what `bench.export.to_dict` gives.
    """

    result: PlainResult

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole, endless = self._tables(COLUMNS), options.update_width(1000)
        needed = max((Measurement.get(console, endless, shown).maximum for shown in whole), default=0)
        yield from whole if needed <= options.max_width else self._tables(NARROW)
        yield Text("\n".join([*refusal_lines(self.result), *note_lines(self.result), *condition_lines(self.result)]))

    def _tables(self, columns: Mapping[str, Callable[[PlainRow], str]]) -> list[Table]:
        return [_table(title, rows, columns) for title, rows in group_by_cell(self.result["rows"])]


def _table(title: str, rows: list[PlainRow], columns: Mapping[str, Callable[[PlainRow], str]]) -> Table:
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
