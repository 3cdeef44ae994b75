"""The tables of speed in the README: `python -m benchmarks.speed [--write] [--threads N] [SECTION ...]`.

Each section is one run of what `mixer-equiv bench` runs. With `--write` the results go to
benchmarks/results/speed_SECTION.json, .csv, .md, .svg and .png, those of "processors" to files named by the
instruction set that torch used, and the README's table is written anew. The exit status is 1 if a program was refused,
because it does not compute the official function.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mixer_equiv import MixerConfig
from mixer_equiv.bench import export, plots
from mixer_equiv.bench.cells import DEVICES, make_cells
from mixer_equiv.bench.contestants import make_entries, names_running_in, parse_formulations
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.checkpoints.formats.atomic import replacement
from mixer_equiv.errors import ConfigError
from mixer_equiv.render.bench import Tables

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(<!-- python -m benchmarks\.speed -->\n).*?(<!-- end -->\n)", re.DOTALL)

# What needs no compiler.
PLAIN = ("torch", "torch packed", "timm", "tutorial", "lucidrains", "flax", "official")

WRITINGS = ("conv,matmul,linear", "conv,conv1d,linear", "conv,shared_conv,linear", "conv,linear,conv1d")

# Variants, dtypes, batches, modes, programs (all that run, where none is named) and formulations of each.
SECTIONS: Mapping[str, tuple[Any, ...]] = {
    "quick": (["S/32"], ["float32"], [1, 8], ["inference"], (), ()),
    "inference": (["S/32", "B/16"], ["float32", "bfloat16"], [1, 8, 32], ["inference"], (), ()),
    "training": (["S/32"], ["float32", "bfloat16"], [8, 32], ["training"], (), ("linear,matmul,linear",)),
    "formulations": (["S/32"], ["float32"], [8], ["inference"], ("torch", "flax"), WRITINGS),
    # One table for each instruction set; in bfloat16 without AVX-512 torch takes seconds a call.
    "processors": (["S/32"], ["float32", "bfloat16"], [1, 8], ["inference"], PLAIN, ()),
    "depthwise": (["S/32"], ["float32"], [1], ["inference"], ("torch",), ("conv,depthwise_conv,linear",)),
}


def run(section: str, device: str, threads: int | None) -> dict[str, Any]:
    """The result of a section, as plain data."""
    variants, dtypes, batches, modes, programs, writings = SECTIONS[section]
    given = list(make_cells([MixerConfig.from_name(name) for name in variants], dtypes, batches, device, modes))
    programs = programs or names_running_in(given)
    console = Console(stderr=True)
    result = measure_cells(
        given,
        list(make_entries(programs, parse_formulations(writings))),
        baseline="timm" if "timm" in programs else programs[0],
        threads=threads,
        on_step=lambda step: console.print(step, style="dim"),
    )
    return export.to_dict(result)


def write(section: str, result: Mapping[str, Any]) -> None:
    """A result's files."""
    if section == "processors":
        section = f"{section}_{_instructions(result).lower()}"
    texts = {
        "json": json.dumps(result, indent=2) + "\n",
        "csv": export.to_csv(result),
        "md": f"# Speed: {section}\n\nWritten by `python -m benchmarks.speed --write`.\n\n{export.to_markdown(result)}",
    }
    for suffix, text in texts.items():
        with replacement(RESULTS / f"speed_{section}.{suffix}") as temporary:
            temporary.write_text(text)
    plots.plot(result["rows"], RESULTS / f"speed_{section}.svg")


def with_table(readme: str) -> str:
    """The README's text with its table of ratios as the recorded results have it."""
    found = [RESULTS / f"speed_{section}.json" for section in SECTIONS]
    found += sorted(RESULTS.glob("speed_processors_*.json"))
    results = [json.loads(path.read_text()) for path in found if path.exists()]
    return MARKED.sub(lambda marks: f"{marks[1]}{readme_table(results)}{marks[2]}", readme)


def readme_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A table of ratios for each result with timm in it: a row for each program, a column for each cell."""
    timed = [result for result in results if result["baseline"] == "timm"]
    if not timed:
        return "No results are recorded: `make bench-full` does.\n"
    said = f"Medians over {timed[0]['rounds']} interleaved rounds; intervals, and why one is refused, in the files."
    return "\n".join([line for result in timed for line in (*_ratios(result), "")] + [said, ""])


def _instructions(result: Mapping[str, Any]) -> str:
    """The name of the instruction set alone."""
    return str(result["machine"]["instruction_set"]).partition(" ")[0]


def _ratios(result: Mapping[str, Any]) -> list[str]:
    groups = [{row["program"]: row for row in group} for _, group in export.group_by_cell(result["rows"])]
    first = [next(iter(group.values())) for group in groups]
    corner = f"{first[0]['mode']}, {first[0]['device']}, {_instructions(result)}"
    headings = [f"{row['variant']}<br>{row['dtype']}<br>batch {row['batch']}" for row in first]
    names = dict.fromkeys(row["program"] for row in result["rows"] if row["ratio"])
    ratio, images = export.formatter("{:.2f}", "ratio"), export.formatter("{:.1f}", "images_per_second")
    shown = [(name, name, ratio) for name in names] + [("timm, images/s", "timm", images)]
    rows = [[head, *(say(group[name]) if name in group else "" for group in groups)] for head, name, say in shown]
    return [*export.markdown_table([corner, *headings], rows), "", export.condition_lines(result)[-1]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/ and the README's table")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--threads", type=int, help="cores for both frameworks; all")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    refused = []
    for section in options.sections or [name for name in SECTIONS if name != "quick"]:
        try:
            result = run(section, options.device, options.threads)
        except ConfigError as error:
            parser.error(str(error))
        Console().print(Tables(result))
        refused += export.refusal_lines(result)
        if options.write:
            write(section, result)
            README.write_text(with_table(README.read_text()))
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
