"""The lines of a plot: the programs that have one, those that share one, and those that are left to the table.

Takes rows as JSON has them, and knows no matplotlib. Start reading at `choose_lines`.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mixer_equiv.bench.contestants import CONTESTANTS

MOST_LINES = 5
# Programs of one framework that are run alike, in one formulation, share a line where the fastest of them is at most
# this much faster than the slowest, with every batch.
NEARLY = 0.10

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a panel: its images per second by batch, and whether it is ours or the baseline."""

    name: str
    rates: Mapping[int, float]
    ours: bool
    baseline: bool

    @property
    def contestant(self) -> str:
        return self.name.partition(" (")[0]

    @property
    def formulation(self) -> str:
        return self.name.partition(" (")[2]


# Programs get a line in these turns, of each role the fastest that has none yet, and then all turns again.
ROLES: tuple[Callable[[Program], bool], ...] = (
    lambda program: program.ours,
    lambda program: program.baseline,
    lambda program: program.contestant == "official",
    lambda program: program.ours,
    lambda program: not program.ours,
)


@dataclasses.dataclass(frozen=True)
class Line:
    """Programs that share a line, the most important first."""

    programs: tuple[Program, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(program.name for program in self.programs)

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(sorted(self.programs[0].rates))

    def rates(self, summarize: Callable[[list[float]], float] = statistics.median) -> list[float]:
        """Images per second of the programs with each batch, as one number: by default their median."""
        return [summarize([program.rates[batch] for program in self.programs]) for batch in self.batches]


def choose_lines(rows: Rows, baseline: str | None = None) -> tuple[list[Line], list[str]]:
    """Choose the lines of a panel, at most `MOST_LINES`, and list the programs that are left to the table."""
    lines: list[list[Program]] = []
    for program in _by_importance(_programs(rows, baseline)):
        near = next((line for line in lines if all(_nearly_equal(program, other) for other in line)), None)
        if near is None:
            lines.append([program])
        else:
            near.append(program)
    left = [program.name for line in lines[MOST_LINES:] for program in line]
    return [Line(tuple(line)) for line in lines[:MOST_LINES]], left


def _programs(rows: Rows, baseline: str | None) -> list[Program]:
    rates: dict[str, dict[int, float]] = {}
    for row in rows:
        rates.setdefault(row["program"], {})[row["batch"]] = row["images_per_second"]
    ours = {row["program"]: row["ours"] for row in rows}
    return [Program(name, by_batch, ours[name], name == baseline) for name, by_batch in rates.items()]


def _by_importance(programs: Sequence[Program]) -> Iterator[Program]:
    waiting = sorted(programs, key=lambda program: -max(program.rates.values()))
    for has_role in itertools.cycle(ROLES):
        if not waiting:
            return
        if (fastest := next(filter(has_role, waiting), None)) is not None:
            waiting.remove(fastest)
            yield fastest


def _nearly_equal(x: Program, y: Program) -> bool:
    """Whether two programs are of one kind, and nearly as fast as each other with every batch."""
    if _kind(x) != _kind(y) or x.rates.keys() != y.rates.keys():
        return False
    pairs = [sorted((x.rates[batch], y.rates[batch])) for batch in x.rates]
    return all(fast <= (1 + NEARLY) * slow for slow, fast in pairs)


def _kind(program: Program) -> tuple[str, str, str]:
    contestant = CONTESTANTS[program.contestant]
    return contestant.framework, contestant.execution, program.formulation
