"""Write the tables of speed in the documents from the recorded results: all in the site, a short one in the README."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import result_files
from mixer_equiv.bench import export

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- python -m benchmarks\.speed -->\n).*?(<!-- end -->\n)", re.DOTALL)

# The recorded results of which tables are written, and the glob of those by instruction set.
RESULTS, BY_PROCESSOR = ("speed_inference", "speed_training"), "speed_processors_*.json"

# The rows and columns of the short table.
SHORT_PROGRAMS = "torch packed", "torch", "flax", "official", "timm", "tutorial", "lucidrains"
SHORT_CELLS = ("S/32", "float32", 8), ("B/16", "float32", 1), ("B/16", "float32", 8), ("B/16", "bfloat16", 8)

NO_RESULTS = "No results are recorded: `make bench-full` records them.\n"

Result = Mapping[str, Any]


def write() -> None:
    """Write the tables of all documents anew."""
    for path, table in TABLES.items():
        document = ROOT / path
        document.write_text(with_table(document.read_text(encoding="utf-8"), table), encoding="utf-8")


def with_table(document: str, table: Callable[[], str]) -> str:
    """Replace what stands between the marks of a document."""
    return MARKS.sub(lambda marks: f"{marks[1]}{table()}{marks[2]}", document)


def full_tables() -> str:
    """A table of ratios for each result with timm in it: a row for each program, a column for each cell."""
    names = [*RESULTS, *sorted(path.stem for path in result_files.RESULTS.glob(BY_PROCESSOR))]
    results = [result_files.read(name) for name in names if (result_files.RESULTS / f"{name}.json").exists()]
    timed = [result for result in results if result["baseline"] == "timm"]
    if not timed:
        return NO_RESULTS
    rounds = timed[0]["rounds"]
    protocol = f"Medians over {rounds} interleaved rounds; the files have intervals, and why a program was refused."
    return "\n".join([line for result in timed for line in (*_table(result), "")] + [protocol, ""])


def short_table() -> str:
    """A table of some programs and cells in inference."""
    if not (result_files.RESULTS / f"{RESULTS[0]}.json").exists():
        return NO_RESULTS
    return "\n".join([*_table(result_files.read(RESULTS[0]), SHORT_PROGRAMS, SHORT_CELLS), ""])


TABLES: Mapping[str, Callable[[], str]] = {"README.md": short_table, "docs/reference/speed.md": full_tables}


def instruction_set(result: Result) -> str:
    """The instruction set without its extensions."""
    return str(result["machine"]["instruction_set"]).partition(" ")[0]


def _table(
    result: Result, programs: Sequence[str] | None = None, cells: Sequence[tuple[str, str, int]] | None = None
) -> list[str]:
    """The lines of a table of `programs` and `cells`, or of all, and below it the conditions."""
    groups = [{row["program"]: row for row in group} for _, group in export.group_by_cell(result["rows"])]
    groups = [group for group in groups if cells is None or _cell(group) in cells]
    first = [next(iter(group.values())) for group in groups]
    corner = f"{first[0]['mode']}, {first[0]['device']}, {instruction_set(result)}"
    headings = [f"{row['variant']}<br>{row['dtype']}<br>batch {row['batch']}" for row in first]
    names = programs or dict.fromkeys(row["program"] for row in result["rows"] if row["ratio"])
    ratio, images = export.formatter("{:.2f}", "ratio"), export.formatter("{:.1f}", "images_per_second")
    lines = [(name, name, ratio) for name in names] + [("timm, images/s", "timm", images)]
    rows = [
        [heading, *(text_of(group[name]) if name in group else "" for group in groups)]
        for heading, name, text_of in lines
    ]
    return [*export.markdown_table([corner, *headings], rows), "", export.condition_lines(result)[-1]]


def _cell(group: Mapping[str, Any]) -> tuple[str, str, int]:
    row = next(iter(group.values()))
    return row["variant"], row["dtype"], row["batch"]
