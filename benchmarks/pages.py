"""Pages and pictures of all results, and the tables of speed in the documents: `python -m benchmarks.pages`.

All are written anew from the recorded numbers; nothing is measured. Use it after a change of wording or of looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks import breakdown, cold_start, conversion, gpu, mixing, rates, result_files, speed, speed_tables, verdict


class Page(NamedTuple):
    """The text of a result in Markdown, and its picture, where it has one."""

    text: Callable[[Mapping[str, Any]], str]
    draw: Callable[[Mapping[str, Any]], Any] = lambda result: None


PAGES: Mapping[str, Page] = {
    "breakdown": Page(breakdown.page),
    "cold_start": Page(cold_start.page),
    "conversion": Page(conversion.page, conversion.draw),
    "mixing": Page(mixing.page),
    "rates": Page(rates.page),
    "verdict": Page(verdict.page),
}


def page_of(name: str) -> Page:
    """Find the page of a result by its name."""
    if name.startswith("gpu_"):
        return Page(lambda result: gpu.page(name.removeprefix("gpu_"), result))
    if name.startswith("speed_"):
        return Page(lambda result: speed.page(name.removeprefix("speed_"), result), speed.draw)
    return PAGES[name]


def recorded_names() -> list[str]:
    """List the recorded results that have a page."""
    return sorted(path.stem for path in result_files.RESULTS.glob("*.md"))


def main() -> None:
    for name in recorded_names():
        result, page = result_files.rounded(result_files.read(name)), page_of(name)
        result_files.write(name, result, page.text(result), page.draw(result))
    speed_tables.write()


if __name__ == "__main__":
    main()
