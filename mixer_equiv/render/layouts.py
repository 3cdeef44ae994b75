"""The table of layouts, for terminals with rich and for pages in Markdown."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mixer_equiv.checkpoints.convention_warnings import describe_activation
from mixer_equiv.layouts import Layout

# A parameter that every layout has, whose name shows at a glance how the layout's names are made.
_EXAMPLE = "MixerBlock_{i}/token_mixing/Dense_0/kernel"
_FRAMEWORKS = {"flax": "Flax", "torch": "torch"}


def describe_layout(layout: Layout) -> dict[str, str]:
    """A layout in words, by column: its names, whose it is, what its code computes, what it can hold."""
    example = next(row for row in layout.rows if row.general == _EXAMPLE)
    eps = f"{layout.computes.layer_norm_eps:g}".replace("e-0", "e-")
    return {
        "layout": ", ".join((layout.name, *layout.aliases)),
        "whose": layout.summary,
        "framework": _FRAMEWORKS[layout.framework],
        "its code computes": f"{describe_activation(layout.computes.activation)}, eps {eps}",
        "expressible": "read only" if layout.read_only else "; ".join(map(str, layout.constraints)) or "both ways",
        "a name in it": next(b.foreign for b in layout.bindings(1).values() if b.row is example),
    }


# More columns than any table needs.
_WIDEST = 1000


class DrawnLayouts:
    """What `describe_layout` says of each layout, for a terminal: a table, or in a narrow one a list."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self._as_table()
        needed = Measurement.get(console, options.update(max_width=_WIDEST), table).minimum  # no word is cut in two
        yield table if needed <= options.max_width else self._as_list()

    def _as_table(self) -> Table:
        """A row for each layout, with a name in it below whose it is."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        *columns, name = self.rows[0]
        for column in columns:
            heading = f"{column}, {name}" if column == "whose" else column
            table.add_column(heading, style="bold" if column == "layout" else "", no_wrap=column == "whose")
        for row in self.rows:
            table.add_row(*(f"{row[c]}\n{row[name]}" if c == "whose" else row[c] for c in columns))
        return table

    def _as_list(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for row in self.rows:
            (_, names), *others = row.items()
            table.add_row(Text(names, style="bold"))
            for _, text in others:
                table.add_row(Padding(Text(text, overflow="fold"), (0, 0, 0, 2)))
        return table


def layouts_markdown(rows: list[dict[str, str]]) -> str:
    """The same table in Markdown, names of layouts and arrays as code."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row["layout"].split(", "))
        lines.append([*{**row, "layout": names, "a name in it": f"`{row['a name in it']}`"}.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
