"""Places in long names at which a line may break, so that tables of them fit a screen."""

from __future__ import annotations

import re

_CELL_CODE = re.compile(r"(?<=<td>)(?:<a id=\"[^\"]*\"></a>)?<code>[^<]*</code>(?=</td>)")

_HEADING = re.compile(r"(?<=doc-object-name )[^>]*>[\w.]+(?=<)")


def allow_breaks(html: str) -> str:
    """The page with such places in full paths that are headings, and in code that fills a cell of a table."""
    html = _HEADING.sub(lambda name: name[0].replace(".", ".<wbr>"), html)
    return _CELL_CODE.sub(lambda cell: re.sub(r"(?<=[\w}\]])([/.])(?=[\w{])", r"\1<wbr>", cell[0]), html)
