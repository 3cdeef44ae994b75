"""Tables and lists as plain text, for `print`.

Knows neither reports nor Mixers. `render` draws the same tables with rich, in colour and to the width of a terminal.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

REPORT_WIDTH = 110

_GAP = "   "
_MARGIN = " "
_INDENT = "  "


class Column(NamedTuple):
    """A heading, and how cells below it are set; columns that are `is_wrapped` are narrowed first."""

    heading: str = ""
    is_right: bool = False
    is_wrapped: bool = False


class Line(NamedTuple):
    """The cells of one line of a table, in bold where that can be shown."""

    cells: tuple[str, ...]
    is_bold: bool = False


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Columns, and lines in sections that blank lines set apart."""

    columns: tuple[Column, ...]
    sections: tuple[tuple[Line, ...], ...]


class Paragraph(NamedTuple):
    """A labelled paragraph of a list."""

    label: str
    text: str


def table_lines(table: TextTable, width: int = REPORT_WIDTH) -> list[str]:
    """A table as lines of text: headings, a rule, and sections with a blank line after each."""
    headings = tuple(column.heading for column in table.columns)
    widths = column_widths(table, width)
    lines = ["", *_cell_lines(headings, table.columns, widths, bottom=True), _MARGIN + "─" * _total(widths)]
    for section in table.sections:
        for line in section:
            lines += _cell_lines(line.cells, table.columns, widths)
        lines.append("")
    return lines


def list_lines(paragraphs: Sequence[Paragraph], width: int = REPORT_WIDTH) -> list[str]:
    """Labelled paragraphs as lines of text, the paragraphs in one column beside the labels."""
    column = max((len(paragraph.label) for paragraph in paragraphs), default=0)
    room = width - column - 2 * len(_INDENT)
    lines = []
    for paragraph in paragraphs:
        for number, part in enumerate(wrap(paragraph.text, room)):
            label = paragraph.label if number == 0 else ""
            lines.append(f"{_INDENT}{label:{column}}{_INDENT}{part}".rstrip())
    return lines


def wrap(text: str, width: int = REPORT_WIDTH) -> list[str]:
    """Break a paragraph into lines of at most `width` characters, at spaces where that is possible."""
    lines: list[str] = []
    for part in text.split("\n"):
        indent = part[: len(part) - len(part.lstrip())] if width > len(part) - len(part.lstrip()) else ""
        lines += textwrap.wrap(part, max(width, 1), subsequent_indent=indent, break_on_hyphens=False) or [""]
    return lines


# A number in a cell, such as 1.2e-16, 62,090 or 99.44%.
_NUMBER = re.compile(r"(?<!\S)[-+]?\d[\d.,e+-]*%?(?!\S)")


def column_widths(table: TextTable, width: int = REPORT_WIDTH) -> list[int]:
    """The width of each column of a table of `width`: the widest is narrowed until all fit, and no number is broken."""
    rows = [tuple(column.heading for column in table.columns)]
    rows += [line.cells for section in table.sections for line in section]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, cells)) for cells in columns]
    least = [max((len(number) for cell in cells for number in _NUMBER.findall(cell)), default=1) for cells in columns]
    room = width - 2 * len(_MARGIN)
    for candidates in ([i for i, column in enumerate(table.columns) if column.is_wrapped], list(range(len(widths)))):
        while _total(widths) > room and (narrowed := [i for i in candidates if widths[i] > least[i]]):
            widths[max(narrowed, key=widths.__getitem__)] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _cell_lines(
    cells: Iterable[str], columns: Sequence[Column], widths: Sequence[int], bottom: bool = False
) -> list[str]:
    """The lines of text for a line of cells, short cells at its top or `bottom`."""
    parts = [wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, parts))
    padded = [[""] * (height - len(part)) + part if bottom else part + [""] * (height - len(part)) for part in parts]
    lines = []
    for row in zip(*padded, strict=True):
        padded_cells = [
            f"{text:>{width}}" if column.is_right else f"{text:{width}}"
            for text, column, width in zip(row, columns, widths, strict=True)
        ]
        lines.append(f"{_MARGIN}{_GAP.join(padded_cells)}".rstrip())
    return lines
