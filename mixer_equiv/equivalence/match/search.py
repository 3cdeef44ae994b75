"""Find a program in a trace by its values: which parameters of the trace are the program's, and where the two part.

The program's steps are replayed in float64 on the trace's own input. At a step with parameters,
those of the trace are tried, in every order of axes that their shapes allow, until the result is
a value that the trace really has: equal up to the order of elements, which the end of the program
then proves. Nothing is concluded from names, shapes alone, or code. Where a step's value is nowhere
in the trace, the step deviates: variants of its operation are tried, leaving it out, something put
before it, and at last the trace's own value in its place. A move that could be chance is confirmed by
the steps after it.

Several programs may be possible, such as one for each depth: the trace decides at the first step in
which they differ. This module knows operations and values; it imports no model and no layout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.moves import COST_OF, Insertion, MoveGenerator, Replay, names_of
from mixer_equiv.equivalence.match.parameters import Assignment
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array, Program, Step

LARGEST_COST = 4

# An output may be off by so much; differences of another function are larger.
OUTPUT_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramMatch:
    """A program found in a trace, or as much of it as there was.

    `values` are the program's, replayed with the deviations, by their places; `seen` the trace's
    value of each. `assignments` are by parameter. `is_whole` tells whether the output was reached, `output`
    at which of the trace's outputs, and `residual` how far off; else `missing` is the step that was not
    found. `before` are values, by their places, as they were before something else was done to them.
    """

    program: Program
    values: tuple[Array, ...]
    seen: tuple[Value | None, ...]
    assignments: Mapping[str, Assignment]
    deviations: tuple[Deviation, ...]
    is_whole: bool
    output: str | None = None
    residual: float | None = None
    missing: str | None = None
    before: Mapping[int, tuple[Array, Value | None]] = dataclasses.field(default_factory=dict)


def find_program(trace: Trace, entry: Array, programs: Iterable[Program], *, thorough: bool = True) -> ProgramMatch:
    """The one of `programs` that the trace is, with the fewest deviations; the best that there is, if none.

    Where no step leads on, a `thorough` search goes back some steps, which takes longest where there is
    nothing to be found.

    `entry` is the trace's input in the programs' order of axes.
    """
    return _Search(trace, entry, tuple(programs)).match(thorough)


class _Search:
    def __init__(self, trace: Trace, entry: Array, programs: tuple[Program, ...]) -> None:
        self.trace, self.entry, self.programs = trace, entry, programs
        self.moves = MoveGenerator(trace, programs)

    def match(self, thorough: bool) -> ProgramMatch:
        replay = Replay((), (self.entry,), (self.trace.values[self.trace.input],), {}, ())
        passed = [(self.programs, replay)]
        while True:
            candidates, replay = passed[-1]
            reached = self._onward(candidates, replay, 1) or (self._from_before(passed) if thorough else None)
            if reached is None:
                return self._unfinished(candidates, replay)
            replay, done = reached
            if done is not None:
                return done
            passed.append((tuple(p for p in self.programs if p.steps[: len(replay.steps)] == replay.steps), replay))

    def _onward(
        self, candidates: tuple[Program, ...], replay: Replay, needed: int
    ) -> tuple[Replay, ProgramMatch | None] | None:
        """The replay after so many sure steps, at the least cost."""
        for budget in range(LARGEST_COST + 1):
            reached = self._search(candidates, replay, budget, needed)
            if reached is not None:
                return reached
        return None

    def _from_before(
        self, passed: list[tuple[tuple[Program, ...], Replay]]
    ) -> tuple[Replay, ProgramMatch | None] | None:
        """Another way from one or two sure steps back, whose values were in the trace for another reason."""
        for back in (1, 2):
            if len(passed) > back:
                reached = self._onward(*passed[-1 - back], needed=back + 1)
                if reached is not None:
                    return reached
        return None

    def _branches(self, candidates: tuple[Program, ...], replay: Replay) -> dict[Step, tuple[Program, ...]]:
        """The possible next steps, and the programs that have each."""
        place = len(replay.steps)
        result: dict[Step, list[Program]] = {}
        for program in candidates:
            if len(program.steps) > place:
                result.setdefault(program.steps[place], []).append(program)
        return {step: tuple(programs) for step, programs in result.items()}

    def _search(
        self, candidates: tuple[Program, ...], replay: Replay, budget: int, needed: int
    ) -> tuple[Replay, ProgramMatch | None] | None:
        """The replay after so many sure steps at no more than the cost, or a match that ends before."""
        branches = self._branches(candidates, replay)
        # More steps decide where programs part, since their first ones are often alike.
        needed = max(needed, 2) if len(branches) > 1 else needed
        for step, programs in branches.items():
            for move in self.moves.moves(step, replay, budget):
                after = replay.after(step, move)
                # What deviates is confirmed by the step after it: a value may be there for another reason.
                left = needed - move.sure + (move.cost > 0)
                if left <= 0:
                    return after, None
                found = self._search(programs, after, budget - move.cost, left)
                if found is not None:
                    return found
        # Last, since a model may return the features that its head takes as well.
        for program in candidates:
            if len(program.steps) == len(replay.steps) and (done := self._finished(program, replay, budget)):
                return replay, done
        return None

    # Where a program ends

    def _finished(self, program: Program, replay: Replay, budget: int) -> ProgramMatch | None:
        """The match, if the program's result is an output of the trace, element for element."""
        for found, more in self._results(program, replay.values[-1], replay.position, budget):
            for path, number in self.trace.outputs.items():
                output = self.trace.values[number].array
                if output.squeeze().shape == found.squeeze().shape:
                    residual = _residual(output.reshape(found.shape), found)
                    if residual <= OUTPUT_TOLERANCE:
                        every = (*replay.deviations, *more)
                        return ProgramMatch(
                            program,
                            replay.values,
                            replay.seen,
                            replay.assignments,
                            every,
                            True,
                            path,
                            residual,
                            None,
                            replay.before,
                        )
        return None

    def _results(
        self, program: Program, result: Array, position: int, budget: int
    ) -> Iterator[tuple[Array, tuple[Deviation, ...]]]:
        """The result, and what becomes of it by more operations than the program has."""
        yield result, ()
        if budget < COST_OF["insert"]:
            return
        for array, value, what, found, assignments in list(self.moves.inserted(result, position)):
            first = Insertion(program.steps[-1].name, "insert", what, None, found, names_of(*assignments), assignments)
            for last, more in self._results(program, array, value.number, budget - COST_OF["insert"]):
                yield last, (first, *more)

    def _unfinished(self, candidates: tuple[Program, ...], replay: Replay) -> ProgramMatch:
        """As far as it came, in the program that has parameters for what is left of the trace's."""
        used = {name for assignment in replay.assignments.values() for name in names_of(assignment)}
        left = len({name for leaves in self.trace.uses for name in leaves} - used)
        place = len(replay.steps)
        program = min(candidates, key=lambda p: abs(left - sum(len(step.parameters) for step in p.steps[place:])))
        for step in program.steps[place : place + 1]:  # which is not enough to tell it from other programs
            move = next(self.moves.moves(step, replay, 0), None)
            if move is not None and move.sure:
                replay, place = replay.after(step, move), place + 1
        missing = program.steps[place].name if place < len(program.steps) else "output"
        return ProgramMatch(
            program, replay.values, replay.seen, replay.assignments, replay.deviations, False, missing=missing
        )


def _residual(actual: Array, expected: Array) -> float:
    scale, distance = (float(np.linalg.norm(array.ravel())) for array in (expected, actual - expected))
    if not np.isfinite(distance):
        return math.inf
    return distance / scale if scale else math.inf if distance else 0.0
