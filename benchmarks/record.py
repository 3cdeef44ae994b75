"""What a run of `benchmarks.rates` was, in numbers and as a page; and what all records have: the machine without its
name, versions, files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deep import Verification
from benchmarks.programs import CHEAP
from mixer_equiv.bench.environment import PACKAGES, Machine
from mixer_equiv.bench.timing import MIN_ROUNDS

__all__ = ["RESULTS", "Machine", "command", "conditions", "page", "summary", "whole", "write"]

RESULTS = Path(__file__).parent / "results"


def summary(
    seconds: Mapping[str, Sequence[float]],
    seen: Sequence[Verification],
    undone: Mapping[str, Sequence[float]],
    draws: int,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of a run, ready for JSON: ratios of sums over shapes, and quartiles of the ratios at each shape."""
    cases = {"tutorial": 1, "stack": draws, "one": 1}
    rates = {name: cases[name] * len(times) / sum(times) for name, times in seconds.items()}
    paired = {
        name: cases[name] * np.divide(seconds["tutorial"], times)
        for name, times in seconds.items()
        if name != "tutorial"
    }
    return {
        "shapes": len(seconds["tutorial"]),
        "draws": draws,
        "cases_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "times_the_tutorial": round(rates["stack"] / rates["tutorial"], 2),
        "times_the_tutorial_one_draw": round(rates["one"] / rates["tutorial"], 3),
        "paired_quartiles": {
            name: [round(float(q), 2) for q in np.quantile(ratios, (0.25, 0.5, 0.75))]
            for name, ratios in paired.items()
        },
        "rounding": sum(len(each.rounding) for each in seen),
        "largest_residual": {
            "outputs": max(each.outputs for each in seen),
            "gradients": max(each.gradients for each in seen),
        },
        "undone": {
            name: round(float(np.median(np.divide(times, undone["as it is"]))), 2)
            for name, times in undone.items()
            if name != "as it is"
        },
        "undone_shapes": len(undone.get("as it is", ())),
        "options": dict(CHEAP),
        "machine": dict(machine),
    }


def page(result: Mapping[str, Any]) -> str:
    """The summary for a person, in Markdown."""
    rates, paired, machine = result["cases_per_second"], result["paired_quartiles"], result["machine"]
    rows = [
        ("the tutorial's check: parameter count, output shape", rates["tutorial"], "1", ""),
        (
            f"deep, {result['draws']} draws a shape",
            rates["stack"],
            f"**{result['times_the_tutorial']:.1f}**",
            _quartiles(paired["stack"]),
        ),
        (
            "deep, one draw a shape",
            rates["one"],
            f"{result['times_the_tutorial_one_draw']:.2f}",
            _quartiles(paired["one"]),
        ),
    ]
    lines = [
        f"# Cases a second, {result['shapes']} shapes",
        "",
        "Written by `make rates`. A deep case is one draw of weights and 11 images: the weights by a bit-exact round",
        "trip to torch, outputs and gradients in float64, Flax against torch, compiling included.",
        "",
        "| | cases a second | times the tutorial's | quartiles of that over shapes |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {rate:.2f} | {times} | {quartiles} |" for name, rate, times, quartiles in rows),
        "",
        f"Largest residual: outputs {result['largest_residual']['outputs']:.1e}, gradients "
        f"{result['largest_residual']['gradients']:.1e}. Draws over 1e-12 that float32 showed to be rounding: "
        f"{result['rounding']}.",
        "",
    ]
    if result["undone"]:
        lines += [
            "## What bought what",
            "",
            f"Time for a shape with one choice undone, relative to all as they are: the median over "
            f"{result['undone_shapes']} shapes of {result['draws']} draws.",
            "",
            "| undone | time |",
            "| --- | --- |",
            *(f"| {name} | {ratio:.2f} |" for name, ratio in result["undone"].items()),
            "",
        ]
    return "\n".join([*lines, conditions(machine), ""])


def conditions(machine: Mapping[str, Any], rounds: str = "") -> str:
    """On what it was measured, in words: `machine` as `Machine.described` has it, or a part of that."""
    had = f", of which this process had {machine['cores_had']:.2f}" if "cores_had" in machine else ""
    said = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES))
    before, after = machine["load_before_and_after"]
    processor = ", ".join(filter(None, (machine["processor"], machine.get("instruction_set"))))
    return (
        f"{machine['date']}: {processor}, {machine['cores']} cores{had}; load {before} before and {after} "
        f"after{rounds and f', {rounds} rounds'}. {said}."
    )


def _quartiles(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values)


def write(result: Mapping[str, Any], name: str, text: str) -> None:
    """`results/NAME.json`, and `text` as `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text)


def whole(least: int) -> Callable[[str], int]:
    """What argparse takes a whole number of at least so much by."""

    def parsed(text: str) -> int:
        value = int(text) if text.strip().isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return parsed


def command(
    arguments: Sequence[str] | None,
    name: str,
    said: str | None,
    rounds: int,
    measured: Callable[[int], Mapping[str, Any]],
    page: Callable[[Mapping[str, Any]], str],
    *,
    least: int = MIN_ROUNDS,
    left_out: str = "",
) -> None:
    """A benchmark from the command line: `--rounds`, at least so many, `--write`.

    `said` is its help; `measured` takes the rounds.

    `left_out` is what of the machine's description does not hold, such as `cores_had` where other processes compute.
    """
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    said_of_rounds = f"how often each is timed, at least {least} times; {rounds}"
    parser.add_argument("--rounds", type=whole(least), default=rounds, help=said_of_rounds)
    parser.add_argument("--write", action="store_true", help=f"also write benchmarks/results/{name}.json and .md")
    options = parser.parse_args(arguments)
    with Machine() as machine:
        found = measured(options.rounds)
    described = {key: value for key, value in machine.describe().items() if key != left_out}
    result = {**found, "rounds": options.rounds, "machine": described}
    print(page(result))
    if options.write:
        write(result, name, page(result))
