"""`SearchState`, a program followed in a trace as far as some step, and `Move`, one way to take the next step.

Both are plain data, never changed once made, so that the search can go back to any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.parameter_search import Assignment, KnownAssignment
from mixer_equiv.equivalence.record.trace import Value
from mixer_equiv.operations import Array, Program, Step

# What kinds of deviations cost in the search, the cheapest of which is taken.
COST_OF = {"variant": 1, "skip": 1, "insert": 2, "windows": 2, "unknown": 3}


@dataclasses.dataclass(frozen=True)
class Insertion(Deviation):
    """A deviation by an extra operation; `assignments` are the operands of the trace that it takes."""

    assignments: tuple[KnownAssignment, ...] = dataclasses.field(default=(), compare=False, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """One way to take a step of the program.

    Attributes:
        array: The step's value.
        seen: The value of the trace that has the same elements, if one is known.
        assignments: The step's parameters by name.
        deviations: How the step differs from the program's.
        cost: The sum of the deviations' costs.
        sure: Whether the step rests on a value of the trace that cannot be there by chance.
        replaced: Earlier values by their places, where an operation was inserted first.
    """

    array: Array
    seen: Value | None = None
    assignments: Mapping[str, Assignment] = dataclasses.field(default_factory=dict)
    deviations: tuple[Deviation, ...] = ()
    cost: int = 0
    sure: bool = True
    replaced: Mapping[int, tuple[Array, Value]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class SearchState:
    """A program followed in a trace as far as some step.

    Attributes:
        steps: The program's steps so far.
        values: The input and the steps' values, by their places in the program.
        seen: The trace's value of each of `values`, if one is known.
        assignments: The program's parameters by name.
        deviations: How the steps differ from the program's.
        before_insertion: Values by their places, with the trace's values, as they were before an
            operation was inserted.
        program: A program that may go on so, if it is to take a step.
    """

    steps: tuple[Step, ...]
    values: tuple[Array, ...]
    seen: tuple[Value | None, ...]
    assignments: Mapping[str, Assignment]
    deviations: tuple[Deviation, ...]
    before_insertion: Mapping[int, tuple[Array, Value | None]] = dataclasses.field(default_factory=dict)
    program: Program | None = None

    def advance(self, step: Step, move: Move) -> SearchState:
        """The state with one step more."""
        pairs = zip(self.values, self.seen, strict=True)
        held = [move.replaced.get(place, pair) for place, pair in enumerate(pairs)]
        changed = {place: (self.values[place], self.seen[place]) for place in move.replaced}
        return SearchState(
            (*self.steps, step),
            (*(array for array, _ in held), move.array),
            (*(seen for _, seen in held), move.seen),
            {**self.assignments, **move.assignments},
            (*self.deviations, *move.deviations),
            {**changed, **self.before_insertion},
        )

    def with_last(self, step: Step) -> SearchState | None:
        """The state with its last step taken for this one; None where the two differ in more than names."""
        last = self.steps[-1]
        if (last.operation, last.inputs, last.settings) != (step.operation, step.inputs, step.settings):
            return None
        names = {old.name: new.name for old, new in zip(last.parameters, step.parameters, strict=True)}
        return dataclasses.replace(
            self,
            steps=(*self.steps[:-1], step),
            assignments={names.get(name, name): assigned for name, assigned in self.assignments.items()},
            deviations=tuple(
                dataclasses.replace(d, step=step.name) if d.step == last.name else d for d in self.deviations
            ),
        )

    def replacing(self, place: int, array: Array, value: Value) -> SearchState:
        """The state with another value at a place, and the trace's value of it."""
        values = (*self.values[:place], array, *self.values[place + 1 :])
        return dataclasses.replace(self, values=values, seen=(*self.seen[:place], value, *self.seen[place + 1 :]))

    @cached_property
    def position(self) -> int:
        """The number of the last value of the trace that was found."""
        return max((value.number for value in self.seen if value is not None), default=0)
