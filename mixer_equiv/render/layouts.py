"""The table of layouts, for terminals with rich and for pages in Markdown."""

from __future__ import annotations

from rich import box
from rich.table import Table

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


def draw_layouts(rows: list[dict[str, str]]) -> Table:
    """The table of what `describe_layout` says of each layout, for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold", style="bold" if column == "layout" else "")
    for row in rows:
        table.add_row(*row.values())
    return table


def layouts_markdown(rows: list[dict[str, str]]) -> str:
    """The same table in Markdown, names of layouts and arrays as code."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row["layout"].split(", "))
        lines.append([*{**row, "layout": names, "a name in it": f"`{row['a name in it']}`"}.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
