"""Tables of benchmark results for a terminal; Markdown and CSV are in `bench.export`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mixer_equiv.bench.export import COLUMNS, Plain, by_cell, cells_of, conditions, notes, refusals

# A terminal of 80 columns has no room for all columns; about 130 have.
NARROW = {heading: say for heading, say in COLUMNS.items() if heading not in ("quartiles", "GFLOP/s", "error")}


@dataclasses.dataclass(frozen=True)
class Tables:
    """One table for each cell, with all columns if they fit; below, the refusals, notes and conditions.

    `result` is what `bench.export.to_dict` gives.
    """

    result: Plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole, endless = self._tables(COLUMNS), options.update_width(1000)
        needed = max((Measurement.get(console, endless, shown).maximum for shown in whole), default=0)
        yield from whole if needed <= options.max_width else self._tables(NARROW)
        yield Text("\n".join([*refusals(self.result), *notes(self.result), *conditions(self.result)]))

    def _tables(self, columns: Mapping[str, Callable[[Plain], str]]) -> list[Table]:
        return [_table(title, rows, columns) for title, rows in by_cell(self.result["rows"])]


def _table(title: str, rows: list[Plain], columns: Mapping[str, Callable[[Plain], str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    # The first column is as wide as its longest word or name, so that none is broken.
    words = [word for row in rows for word in (row["program"].partition(" (")[0], *row["program"].split())]
    table.add_column("program", min_width=max(map(len, words)))
    for heading in list(columns)[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = "bold red" if row["refused"] else "bold" if row["ours"] else ""
        table.add_row(*cells_of(row, columns), style=style)
    return table
