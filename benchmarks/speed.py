"""The tables of speed in the README: `python -m benchmarks.speed [--write] [--threads N] [SECTION ...]`.

Each section is one run of what `mixer-equiv bench` runs. With `--write` the results go to
benchmarks/results/speed_SECTION.json, .md and .png, those of "processors" to files named by the instruction set that
torch used, and the README's table is written anew. The exit status is 1 if a program was refused, because it does not
compute the official function. Start reading at `SECTIONS`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import result_files
from mixer_equiv import MixerConfig
from mixer_equiv.bench import export, plots
from mixer_equiv.bench.cells import DEVICES, make_cells
from mixer_equiv.bench.contestants import make_entries, names_running_in, parse_formulations
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.errors import ConfigError
from mixer_equiv.render.bench import Tables

README_PATH = Path(__file__).parent.parent / "README.md"
SPEED_TABLE = re.compile(r"(<!-- python -m benchmarks\.speed -->\n).*?(<!-- end -->\n)", re.DOTALL)

# The contestants that need no compiler.
UNCOMPILED = ("torch", "torch packed", "timm", "tutorial", "lucidrains", "flax", "official")

OTHER_FORMULATIONS = ("conv,matmul,linear", "conv,conv1d,linear", "conv,shared_conv,linear", "conv,linear,conv1d")


class Section(NamedTuple):
    """The axes of a table. Without `contestants` it has all that run; `formulations` are those beside the default."""

    variants: tuple[str, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    mode: str = "inference"
    contestants: tuple[str, ...] = ()
    formulations: tuple[str, ...] = ()


SECTIONS: Mapping[str, Section] = {
    "quick": Section(("S/32",), ("float32",), (1, 8)),
    "inference": Section(("S/32", "B/16"), ("float32", "bfloat16"), (1, 8, 32)),
    "training": Section(
        ("S/32",), ("float32", "bfloat16"), (8, 32), "training", formulations=("linear,matmul,linear",)
    ),
    "formulations": Section(
        ("S/32",), ("float32",), (8,), contestants=("torch", "flax"), formulations=OTHER_FORMULATIONS
    ),
    # One table for each instruction set; in bfloat16 without AVX-512 torch takes seconds a call.
    "processors": Section(("S/32",), ("float32", "bfloat16"), (1, 8), contestants=UNCOMPILED),
    "depthwise": Section(
        ("S/32",), ("float32",), (1,), contestants=("torch",), formulations=("conv,depthwise_conv,linear",)
    ),
}


def run_section(section: str, device: str, threads: int | None) -> dict[str, Any]:
    """Measure a section, and return its result as plain data."""
    axes = SECTIONS[section]
    configs = [MixerConfig.from_name(name) for name in axes.variants]
    cells = list(make_cells(configs, axes.dtypes, axes.batches, device, [axes.mode]))
    contestants = axes.contestants or tuple(names_running_in(cells))
    console = Console(stderr=True)
    result = measure_cells(
        cells,
        list(make_entries(contestants, parse_formulations(axes.formulations))),
        baseline="timm" if "timm" in contestants else contestants[0],
        threads=threads,
        on_step=lambda step: console.print(step, style="dim"),
    )
    return export.to_dict(result)


def write(section: str, result: Mapping[str, Any]) -> None:
    """Write a section's files."""
    if section == "processors":
        section = f"{section}_{_instruction_set(result).lower()}"
    result = result_files.rounded(result)
    result_files.write(f"speed_{section}", result, page(section, result), draw(result))


def page(section: str, result: Mapping[str, Any]) -> str:
    """Write a section's tables in Markdown."""
    return f"# Speed: {section}\n\nWritten by `python -m benchmarks.speed --write`.\n\n{export.to_markdown(result)}"


def draw(result: Mapping[str, Any]) -> Any:
    """Draw a section's picture as a matplotlib figure."""
    return plots.draw(result["rows"])


def write_readme() -> None:
    """Write the README's table anew from the recorded results."""
    README_PATH.write_text(with_speed_table(README_PATH.read_text()))


def with_speed_table(readme: str) -> str:
    """Replace the table in the README's text by that of the recorded results."""
    names = [f"speed_{section}" for section in SECTIONS]
    names += sorted(path.stem for path in result_files.RESULTS.glob("speed_processors_*.json"))
    results = [result_files.read(name) for name in names if (result_files.RESULTS / f"{name}.json").exists()]
    return SPEED_TABLE.sub(lambda marks: f"{marks[1]}{readme_table(results)}{marks[2]}", readme)


def readme_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Write a table of ratios for each result with timm in it: a row for each program, a column for each cell."""
    timed = [result for result in results if result["baseline"] == "timm"]
    if not timed:
        return "No results are recorded: `make bench-full` records them.\n"
    rounds = timed[0]["rounds"]
    protocol = f"Medians over {rounds} interleaved rounds; the files have intervals, and why a program was refused."
    return "\n".join([line for result in timed for line in (*_ratio_table(result), "")] + [protocol, ""])


def _instruction_set(result: Mapping[str, Any]) -> str:
    """Name the instruction set without its extensions."""
    return str(result["machine"]["instruction_set"]).partition(" ")[0]


def _ratio_table(result: Mapping[str, Any]) -> list[str]:
    groups = [{row["program"]: row for row in group} for _, group in export.group_by_cell(result["rows"])]
    first = [next(iter(group.values())) for group in groups]
    corner = f"{first[0]['mode']}, {first[0]['device']}, {_instruction_set(result)}"
    headings = [f"{row['variant']}<br>{row['dtype']}<br>batch {row['batch']}" for row in first]
    names = dict.fromkeys(row["program"] for row in result["rows"] if row["ratio"])
    ratio, images = export.formatter("{:.2f}", "ratio"), export.formatter("{:.1f}", "images_per_second")
    lines = [(name, name, ratio) for name in names] + [("timm, images/s", "timm", images)]
    rows = [
        [heading, *(text_of(group[name]) if name in group else "" for group in groups)]
        for heading, name, text_of in lines
    ]
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
    refusals = []
    for section in options.sections or [name for name in SECTIONS if name != "quick"]:
        try:
            result = run_section(section, options.device, options.threads)
        except ConfigError as error:
            parser.error(str(error))
        Console().print(Tables(result))
        refusals += export.refusal_lines(result)
        if options.write:
            write(section, result)
            write_readme()
    return int(bool(refusals))


if __name__ == "__main__":
    sys.exit(main())
