"""Whole processes, timed in turns: seconds, processor seconds and memory. Start reading at `run_in_turns`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_equiv.bench.timing import quartiles

# Starts the process from a small one, because Linux counts the memory of the starting process as the new one's own.
MEASURE = """
import json, os, sys, time
start = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
seconds = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


class ProcessRun:
    """Run a command; hold its wall seconds, processor seconds `cpu`, and peak memory in bytes.

    Raises `AssertionError` for an exit status other than `status`.
    """

    def __init__(self, command: Sequence[str | Path], status: int = 0) -> None:
        measured = [sys.executable, "-S", "-c", MEASURE, *map(str, command)]
        output = subprocess.run(measured, stdout=subprocess.PIPE, check=True, env=process_environment()).stdout
        code, self.seconds, self.cpu, self.memory = json.loads(output)
        assert code == status, command


def process_environment() -> dict[str, str]:
    """Copy this process's environment, but let Python keep compiled modules, as it does by default."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def python_command(script: str, *arguments: Any) -> list[str | Path]:
    """Make a command that runs the text of a script."""
    return [sys.executable, "-c", script, *arguments]


def run_in_turns(
    commands: Mapping[str, Sequence[str | Path]],
    rounds: int,
    clean: Callable[[], None],
    statuses: Mapping[str, int] | None = None,
) -> dict[str, list[ProcessRun]]:
    """Run each command `rounds` times after one run that does not count; another command begins in each round.

    `clean` is called before each run. `statuses` has the expected exit statuses other than 0.
    """
    runs: dict[str, list[ProcessRun]] = {name: [] for name in commands}
    names = list(commands)
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            clean()
            runs[name].append(ProcessRun(commands[name], (statuses or {}).get(name, 0)))
    return {name: each[1:] for name, each in runs.items()}


def rounded_quartiles(values: Sequence[float]) -> list[float]:
    """Compute the first quartile, the median and the third quartile, to three decimals."""
    return [round(value, 3) for value in quartiles(values)]


def shown_quartiles(values: Sequence[float]) -> str:
    """Write the median, and its quartiles in brackets, in Markdown."""
    low, median, high = values
    return f"**{median:.2f}** ({low:.2f} to {high:.2f})"
