"""The tutorial as one notebook, examples/tutorial.ipynb: `python -m docs.build.notebook` writes it from the pages."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[2]
PATH = ROOT / "examples" / "tutorial.ipynb"
FOLDER = "docs/tutorial"

_PYTHON = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def tutorial() -> nbformat.NotebookNode:
    """The pages of the tutorial in order: text and code as they are, links as from the folder of the notebook."""
    pages = sorted((ROOT / FOLDER).glob("[0-9]*.md"))
    sources = [cell for page in pages for cell in _cells(page.read_text(encoding="utf-8"))]
    cells = [(new_code_cell if is_code else new_markdown_cell)(source) for is_code, source in sources]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=kernel)


def as_text(notebook: nbformat.NotebookNode) -> str:
    """The text of the file."""
    return str(nbformat.writes(notebook)) + "\n"


def _cells(page: str) -> Iterator[tuple[bool, str]]:
    """Whether it is code, and the source, of each cell of a page."""
    parts = _PYTHON.split(_FRONT_MATTER.sub("", page))
    for number, part in enumerate(parts):
        is_code = number % 2 == 1
        source = part.strip("\n") if is_code else _LINK.sub(_from_examples, part.strip("\n"))
        if source:
            yield is_code, source


def _from_examples(link: re.Match[str]) -> str:
    target = posixpath.relpath(posixpath.join(FOLDER, link[1]), "examples")
    return f"]({target})"


if __name__ == "__main__":
    PATH.write_text(as_text(tutorial()), encoding="utf-8")
