"""The layouts in a terminal: every name is whole, however narrow it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.render.layouts import DrawnLayouts, describe_layout

ROWS = [describe_layout(layout) for layout in LAYOUTS.values()]


def drawn(width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(DrawnLayouts(ROWS))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_name_is_cut_in_two(width: int) -> None:
    shown = drawn(width)
    assert max(map(len, shown.splitlines())) <= width
    for row in ROWS:
        assert row["a name in it"] in shown
        assert all(name in shown for name in row["layout"].split(", "))


def test_a_wide_terminal_shows_a_table_and_a_narrow_one_a_list() -> None:
    assert "expressible" in drawn(120)
    assert "expressible" not in drawn(60)
