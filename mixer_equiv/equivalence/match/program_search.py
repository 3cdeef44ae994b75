"""`find_program`: find a program in a trace by its values, and the places where the two part.

The program's steps are replayed in float64 on the trace's own input. At a step with parameters,
those of the trace are tried, in every order of axes that their shapes allow, until the result is
a value that the trace really has: equal up to the order of elements, which the end of the program
then proves. Names, code, and shapes alone prove nothing. Where a step's value is nowhere in the trace,
the step deviates: the search tries variants of its operation, leaves it out, puts an extra operation
before it, and at last takes the trace's own value in its place. A move that could be chance is
confirmed by the steps after it.

Several programs may be possible, such as one for each depth: the trace decides at the first step in
which they differ. This module knows operations and values; it imports no model and no layout. A program
recorded from any model is as good: the search takes whatever `Program` it is given, and goes on from
its last sure step, never from the beginning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.match.move_generator import MoveGenerator
from mixer_equiv.equivalence.match.parameter_search import Assignment, operand_names
from mixer_equiv.equivalence.match.repetition import repeat
from mixer_equiv.equivalence.match.search_state import COST_OF, Insertion, SearchState
from mixer_equiv.equivalence.match.sublayers import SWAPPED, branches_end, exchange
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array, Program, Step

LARGEST_COST = 4

# What may be spent more on operations behind the last step, of which few are in the trace and the output proves all;
# and the steps from which the end is near enough to try.
LARGEST_COST_AT_END = 8
LAST_STEPS = 4

# Of how many sure steps more a change of the program's order must be confirmed.
CONFIRMED_BY = 2

# How far an output may be off, relative in the 2-norm; differences of another function are larger.
OUTPUT_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ProgramMatch:
    """A program and as much of it as was found in a trace.

    Attributes:
        program: The program.
        values: Its input and values, replayed with the deviations, by their places in the program.
        seen: The trace's value of each of `values`, if one is known.
        assignments: The program's parameters by name.
        deviations: How the steps differ from the program's.
        before_insertion: Values by their places, with the trace's values, as they were before an
            operation was inserted.
    """

    program: Program
    values: tuple[Array, ...]
    seen: tuple[Value | None, ...]
    assignments: Mapping[str, Assignment]
    deviations: tuple[Deviation, ...]
    before_insertion: Mapping[int, tuple[Array, Value | None]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class WholeMatch(ProgramMatch):
    """A program found from input to output: the path of the trace's output, and how far off that is."""

    output: str
    residual: float


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PartialMatch(ProgramMatch):
    """The beginning of a program: `missing` is the name of the first step that was not found, or "output"."""

    missing: str


def find_program(
    trace: Trace, entry: Array, programs: Iterable[Program], *, thorough: bool = True
) -> WholeMatch | PartialMatch:
    """Find the program that the trace computes, with the fewest deviations; else the likeliest, as far as it fits.

    Where no step leads on, a `thorough` search goes back some steps, which takes longest where there is
    nothing to be found. `entry` is the trace's input in the programs' order of axes.
    """
    search = _ProgramSearch(trace, entry, tuple(programs))
    found = search.run(thorough)
    if not _is_odd(found):
        return found
    search.exchanges = True
    return min(found, search.run(thorough), key=_oddness)


def _is_odd(found: WholeMatch | PartialMatch) -> bool:
    """Whether branches in another order may explain a trace better."""
    further = any(d.kind == "unknown" or (d.kind == "insert" and d.what in _FURTHER) for d in found.deviations)
    return isinstance(found, PartialMatch) or further


# What a search finds inserted where the order of branches is another one.
_FURTHER = ("branch", "layer_norm")


def _oddness(found: WholeMatch | PartialMatch) -> tuple[float, int, int]:
    """A sort key: programs found to the end come first, then those of the fewest steps that are unknown or deviate."""
    missing = -len(found.values) if isinstance(found, PartialMatch) else -math.inf
    unknown = sum(deviation.kind == "unknown" for deviation in found.deviations)
    return missing, unknown, len(found.deviations)


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """A state, and the programs of which it can be the beginning."""

    programs: tuple[Program, ...]
    state: SearchState

    def branches(self) -> dict[Step, tuple[Program, ...]]:
        """The possible next steps, and the programs that have each."""
        place = len(self.state.steps)
        result: dict[Step, list[Program]] = {}
        for program in self.programs:
            if len(program.steps) > place:
                result.setdefault(program.steps[place], []).append(program)
        return {step: tuple(programs) for step, programs in result.items()}


class _ProgramSearch:
    def __init__(self, trace: Trace, entry: Array, programs: tuple[Program, ...]) -> None:
        self.trace, self.entry, self.programs = trace, entry, programs
        self.generator = MoveGenerator(trace)
        self._repetitions: dict[_Node, _Node] = {}
        self.exchanges = False  # whether branches may be in each other's place
        self._exchanges: dict[_Node, _Node | None] = {}

    def run(self, thorough: bool) -> WholeMatch | PartialMatch:
        state = SearchState((), (self.entry,), (self.trace.values[self.trace.input],), {}, ())
        passed = [_Node(self.programs, state)]
        while True:
            reached = self._advance(passed[-1], 1) or (self._backtrack(passed) if thorough else None)
            if reached is None:
                return self._partial(next(node for node in reversed(passed) if not _open_exchanges(node.state)))
            if isinstance(reached, WholeMatch):
                return reached
            passed.append(reached)

    def _advance(self, node: _Node, needed: int) -> _Node | WholeMatch | None:
        """The node after so many sure steps, at the least cost, or a match that ends before."""
        for budget in range(LARGEST_COST + 1):
            reached = self._search(node, budget, needed)
            if reached is not None:
                return reached
        if any(len(program.steps) <= len(node.state.steps) + LAST_STEPS for program in node.programs):
            return self._search(node, LARGEST_COST, needed, at_end=LARGEST_COST_AT_END)
        return None

    def _backtrack(self, passed: list[_Node]) -> _Node | WholeMatch | None:
        """Another way from one or two sure steps back, whose values were in the trace for another reason."""
        for back in (1, 2):
            if len(passed) > back:
                reached = self._advance(passed[-1 - back], needed=back + 1)
                if reached is not None:
                    return reached
        return None

    def _search(self, node: _Node, budget: int, needed: int, *, at_end: int = 0) -> _Node | WholeMatch | None:
        """The node after so many sure steps at no more than the cost, or a match that ends before.

        What is inserted behind the last step may cost so much more `at_end`.
        """
        branches = node.branches()
        # More steps decide where programs part, since their first ones are often alike.
        needed = max(needed, 2) if len(branches) > 1 else needed
        is_possible = self.exchanges and budget >= COST_OF["variant"]
        if is_possible and (other := self._exchanged(node)) is not None:
            found = self._search(other, budget - COST_OF["variant"], needed + CONFIRMED_BY, at_end=at_end)
            if found is not None:
                return found
        for step, programs in branches.items():
            state = dataclasses.replace(node.state, program=programs[0])
            for move in self.generator.moves(step, state, budget):
                if move.cost > budget:
                    continue
                after = _Node(programs, state.advance(step, move))
                # A deviation is confirmed by the step after it: a value may be there for another reason.
                left = needed - move.sure + (move.cost > 0)
                if left <= 0:
                    return after
                found = self._search(after, budget - move.cost, left, at_end=at_end)
                if found is not None:
                    return found
        if budget >= COST_OF["insert"] and (again := self._repeated(node)) is not None:
            found = self._search(again, budget - COST_OF["insert"], needed + 1, at_end=at_end)
            if found is not None:
                return found
        # Last, since a model may return the features that its head takes as well.
        for program in node.programs:
            if len(program.steps) == len(node.state.steps):
                done = self._whole(program, node.state, budget + at_end)
                if done is not None:
                    return done
        return None

    def _repeated(self, node: _Node) -> _Node | None:
        """The node with programs in which the branch that was just added comes once more; None after other steps."""
        steps = node.state.steps
        if not steps or steps[-1].operation != "add":
            return None
        if node not in self._repetitions:
            seen = node.state.seen[-1]
            place = None if seen is None else seen.place
            added = Deviation(steps[-1].name, "insert", "branch", None, Choice.AGAIN, place=place)
            state = dataclasses.replace(node.state, deviations=(*node.state.deviations, added))
            programs = tuple(repeat(program, len(steps)) for program in node.programs)
            self._repetitions[node] = _Node(programs, state)
        return self._repetitions[node]

    def _exchanged(self, node: _Node) -> _Node | None:
        """The node with the branch that was just begun, and the next one, in each other's place.

        Both begin alike, so that only the second step tells which it is.
        """
        if node not in self._exchanges:
            self._exchanges[node] = self._exchange(node)
        return self._exchanges[node]

    def _exchange(self, node: _Node) -> _Node | None:
        state = node.state
        place = len(state.steps) - 1
        if place < 0 or state.steps[-1].inputs != (place,) or _open_exchanges(state):
            return None
        programs = tuple(other for program in node.programs if (other := exchange(program, place)) is not None)
        begun = {program.steps[place] for program in programs}
        renamed = state.with_last(begun.pop()) if len(begun) == 1 else None
        end = branches_end(programs[0], place, 2) if renamed is not None else None
        if renamed is None or end is None:
            return None
        stream, seen = state.seen[-2:]
        at = None if seen is None else seen.place if seen is not stream else self.trace.place_after(seen)
        swapped = Deviation(programs[0].steps[end - 1].name, "variant", SWAPPED, None, None, place=at)
        return _Node(programs, dataclasses.replace(renamed, deviations=(*renamed.deviations, swapped)))

    # Where a program ends

    def _whole(self, program: Program, state: SearchState, budget: int) -> WholeMatch | None:
        """The match, if the program's result is an output of the trace, element for element."""
        for result, more in self._results(program, state.values[-1], state.position, budget):
            for path, number in self.trace.outputs.items():
                output = self.trace.values[number].array
                if output.squeeze().shape == result.squeeze().shape:
                    residual = _residual(output.reshape(result.shape), result)
                    if residual <= OUTPUT_TOLERANCE:
                        return WholeMatch(
                            program=program,
                            values=state.values,
                            seen=state.seen,
                            assignments=state.assignments,
                            deviations=(*state.deviations, *more),
                            before_insertion=state.before_insertion,
                            output=path,
                            residual=residual,
                        )
        return None

    def _results(
        self, program: Program, result: Array, position: int, budget: int, last: int = -1
    ) -> Iterator[tuple[Array, tuple[Insertion, ...]]]:
        """The program's result, as it is and after extra operations, each later in the trace than the `last` one."""
        yield result, ()
        if budget < COST_OF["insert"]:
            return
        extras = [extra for extra in self.generator.extra.on(result, position) if extra.value.number > last]
        for extra in extras:
            first, number = extra.deviation(program.steps[-1]), extra.value.number
            for array, more in self._results(program, extra.array, number, budget - COST_OF["insert"], number):
                yield array, (first, *more)

    def _partial(self, node: _Node) -> PartialMatch:
        """The beginning of the program that has parameters for as many as are left of the trace's."""
        state = node.state
        used = {name for assignment in state.assignments.values() for name in operand_names(assignment)}
        left = len({name for leaves in self.trace.uses for name in leaves} - used)
        place = len(state.steps)
        program = min(node.programs, key=lambda p: abs(left - sum(len(step.parameters) for step in p.steps[place:])))
        for step in program.steps[place : place + 1]:  # a single step is not enough to tell it from other programs
            move = next(self.generator.moves(step, dataclasses.replace(state, program=program), 0), None)
            if move is not None and (move.sure or step.parameters):
                state, place = state.advance(step, move), place + 1
        return PartialMatch(
            program=program,
            values=state.values,
            seen=state.seen,
            assignments=state.assignments,
            deviations=state.deviations,
            before_insertion=state.before_insertion,
            missing=program.steps[place].name if place < len(program.steps) else "output",
        )


def _open_exchanges(state: SearchState) -> list[Deviation]:
    """Exchanges of branches of which not both have been found."""
    done = {step.name for step in state.steps}
    return [deviation for deviation in state.deviations if deviation.what == SWAPPED and deviation.step not in done]


def _residual(actual: Array, expected: Array) -> float:
    scale, distance = (float(np.linalg.norm(array.ravel())) for array in (expected, actual - expected))
    if not np.isfinite(distance):
        return math.inf
    return distance / scale if scale else math.inf if distance else 0.0
