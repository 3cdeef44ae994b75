"""`idle_operations`: what changed nothing in a recorded run, and may change other numbers, as a clamp does."""

from __future__ import annotations

import numpy as np

from mixer_equiv.equivalence.record.trace import Trace, Value

# Operations whose result may equal their input by design (copies, casts, times one): no sign of a branch that was
# never taken.
_COPIES = frozenset(
    {
        *("clone", "_to_copy", "copy_", "detach", "alias", "lift_fresh", "cat", "stack", "sub", "div"),
        *("copy", "copy_p", "convert_element_type", "concatenate", "slice", "squeeze", "optimization_barrier", "name"),
        *("sharding_constraint", "stop_gradient", "mul", "add"),
    }
)


def idle_operations(trace: Trace) -> tuple[str, ...]:
    """The operations whose results were their inputs, each with its place where that is known."""
    idle = (
        value
        for value in trace.data
        if value.operation not in _COPIES and any(_is_same(value, trace.values[number]) for number in value.inputs)
    )
    return tuple(dict.fromkeys(_with_place(value) for value in idle))


def _with_place(value: Value) -> str:
    return value.operation if value.place is None else f"{value.operation} at {value.place}"


def _is_same(value: Value, earlier: Value) -> bool:
    if not earlier.is_data or earlier.array.shape != value.array.shape or not value.size:
        return False
    # A variance is never negative, so that clamping it at 0 changes nothing on any input.
    safe = value.operation == "max" and value.array.min() >= 0
    return not safe and np.array_equal(earlier.array, value.array)
