"""`unfollowed`: what a model does where the search stopped, and with which of its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from mixer_equiv.equivalence.match.parameter_search import operand_names
from mixer_equiv.equivalence.match.parts import JoinedValue
from mixer_equiv.equivalence.match.program_search import PartialMatch
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.errors import summarize


def unfollowed(found: PartialMatch, trace: Trace) -> Iterator[str]:
    """A sentence on the operations after the last known step, up to the first that uses another parameter."""
    last = max(number for value in found.seen if value is not None for number in _numbers(value))
    known = {name for assignment in found.assignments.values() for name in operand_names(assignment)}
    operations: dict[str, None] = {}
    for value in trace.data:
        if value.number > last:
            operations[value.operation] = None
            if names := sorted(_parameters_in(value, trace) - known):
                yield f"what could not be followed: {summarize(operations, 4)}, with {summarize(names, 3)}"
                return
    if operations:
        yield f"what could not be followed: {summarize(operations, 4)}"


def _numbers(value: Value) -> tuple[int, ...]:
    return value.inputs if isinstance(value, JoinedValue) else (value.number,)


def _parameters_in(value: Value, trace: Trace) -> frozenset[str]:
    """The names of the parameters that meet the input in the operation that made this value."""
    return frozenset().union(*(trace.values[number].leaves for number in value.inputs))
