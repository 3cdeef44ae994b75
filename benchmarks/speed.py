"""The tables of speed: `python -m benchmarks.speed [--write] [--threads N] [SECTION ...]`.

Each section is one run of what `mixer-equiv bench` runs. With `--write` the results go to
benchmarks/results/speed_SECTION.json, .md and .png, those of "processors" to files named by the instruction set that
torch used, and the tables of the documents are written anew. The exit status is 1 if a program was refused, because
it does not compute the official function. Start reading at `SECTIONS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import result_files, speed_tables
from mixer_equiv import MixerConfig
from mixer_equiv.bench import export, plots
from mixer_equiv.bench.cells import DEVICES, make_cells
from mixer_equiv.bench.contestants import make_entries, names_running_in, parse_formulations
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.errors import ConfigError
from mixer_equiv.render.bench import Tables

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
        section = f"{section}_{speed_tables.instruction_set(result).lower()}"
    result = result_files.rounded(result)
    result_files.write(f"speed_{section}", result, page(section, result), draw(result))


def page(section: str, result: Mapping[str, Any]) -> str:
    """Write a section's tables in Markdown."""
    return f"# Speed: {section}\n\nWritten by `python -m benchmarks.speed --write`.\n\n{export.to_markdown(result)}"


def draw(result: Mapping[str, Any]) -> Any:
    """Draw a section's picture as a matplotlib figure."""
    return plots.draw(result["rows"], result["baseline"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "--write", action="store_true", help="also write benchmarks/results/ and the tables of the documents"
    )
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
            speed_tables.write()
    return int(bool(refusals))


if __name__ == "__main__":
    sys.exit(main())
