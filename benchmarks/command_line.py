"""The command line that benchmarks share: `--rounds` and `--write`, the machine, and the page that is printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import result_files
from mixer_equiv.bench.environment import Machine
from mixer_equiv.bench.timing import MIN_ROUNDS


def at_least(least: int) -> Callable[[str], int]:
    """Make an argparse type for whole numbers of at least `least`."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().isdecimal() else least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return value

    return parse


def run_benchmark(
    arguments: Sequence[str] | None,
    name: str,
    description: str | None,
    rounds: int,
    measure: Callable[[int], Mapping[str, Any]],
    page: Callable[[Mapping[str, Any]], str],
    *,
    least: int = MIN_ROUNDS,
    left_out: str = "",
) -> None:
    """Measure, print the page, and with `--write` record both as results/NAME.

    `measure` takes the number of rounds. `left_out` names a part of the machine's description that does not hold,
    such as `cores_had` where other processes compute.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    help_of_rounds = f"how often each call is timed, at least {least} times; {rounds}"
    parser.add_argument("--rounds", type=at_least(least), default=rounds, help=help_of_rounds)
    parser.add_argument("--write", action="store_true", help=f"also write benchmarks/results/{name}.json and .md")
    options = parser.parse_args(arguments)
    with Machine() as machine:
        measured = measure(options.rounds)
    described = {key: value for key, value in machine.describe().items() if key != left_out}
    result = result_files.rounded({**measured, "rounds": options.rounds, "machine": described})
    print(page(result))
    if options.write:
        result_files.write(name, result, page(result))
