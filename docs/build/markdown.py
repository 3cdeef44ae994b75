"""Pieces of Markdown: tables, code, anchors, and text in which no character is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def code(text: str) -> str:
    """`text` as code in a line."""
    return f"`{text}`"


def block(text: str, language: str = "text") -> str:
    """`text` as a block of code."""
    return f"```{language}\n{text.strip(chr(10))}\n```\n"


def plain(text: str) -> str:
    """`text` on one line, with every character that Markdown or HTML would read as markup escaped."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def anchor(name: str) -> str:
    """A place in a page to link to, by `#name`."""
    return f'<a id="{name}"></a>'
