"""`idle_operations`: what was not seen at work in a recorded run, and may change other numbers, as a clamp does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from mixer_equiv.equivalence.record.trace import Trace, Value

# Operations whose result may equal their input by design (copies, casts, times one): no sign of a branch that was
# never taken.
_COPIES = frozenset(
    {
        *("clone", "_to_copy", "copy_", "detach", "alias", "lift_fresh", "cat", "stack", "sub", "div"),
        *("copy", "copy_p", "convert_element_type", "concatenate", "slice", "squeeze", "optimization_barrier", "name"),
        *("index", "sharding_constraint", "stop_gradient", "mul", "add", "add_any"),
        *(
            "embedding",
            "index_select",
            "gather",
            "take",
            "dynamic_slice",
            "sum",
            "mean",
            "reduce_sum",
        ),  # of all, or one
        *("as_strided", "constant_pad_nd", "pad", "roll", "flip", "rev", "repeat"),  # by shapes alone
    }
)

# Operations on parameters that give all of them, in their order, by constant indices, or along axes of one element.
_OF_ALL = frozenset({"embedding", "index_select", "gather", "take", "dynamic_slice", "sum", "mean", "reduce_sum"})

# Operations that choose among their operands by a mask, which is the operand of this number.
_BY_MASK = {"where": 0, "select_n": 0, "masked_fill": 1}

# Operations whose result is a bound where a number is beyond it.
_LIMITS = frozenset(
    {
        *("clamp", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "max", "min"),
        *("relu", "hardtanh", "threshold", *_BY_MASK),
    }
)

# Those of them that hold numbers above a bound.
_LOWER_LIMITS = ("clamp_min", "maximum", "fmax", "max")

# Operations that compare, by whose results others may be multiplied.
_COMPARISONS = frozenset({"lt", "le", "gt", "ge", "eq", "ne"})


def idle_operations(trace: Trace) -> tuple[str, ...]:
    """The operations whose results were their inputs, or one number throughout, each with its place if known.

    Operations on parameters count as those on the input do.
    """
    made = [value for value in trace.values if not value.is_view and (value.is_data or value.leaves)]
    idle = dict.fromkeys(_label(group[0]) for group in _by_call(made) if _is_identity(group, trace))
    limits: dict[str, bool] = {}
    for value in made:
        if _operation(value) in _LIMITS:
            label = _label(value)
            limits[label] = limits.get(label, True) and _is_constant_limit(value, trace)
    for value in _comparisons(trace):
        label = _label(value)
        limits[label] = limits.get(label, True) and bool((value.array == value.array.flat[0]).all())
    return (*idle, *(label for label, is_constant in limits.items() if is_constant and label not in idle))


def _comparisons(trace: Trace) -> list[Value]:
    """The comparisons by which numbers on the way to an output are made, without those that are masks of a limit."""
    users: dict[int, list[Value]] = {number: [] for number in trace.outputs.values()}
    for value in reversed(trace.values):
        if value.number in users:
            for number in value.inputs:
                users.setdefault(number, []).append(value)
    return [
        value
        for value in trace.values
        if _operation(value) in _COMPARISONS
        and value.size
        and value.number in users
        and not any(_operation(user) in _BY_MASK for user in users[value.number])
        and not _is_constant(value, trace)
    ]


def _by_call(values: Iterable[Value]) -> Iterator[list[Value]]:
    """The values by the operation that made them: several where memory that they share is written into."""
    for _, made in itertools.groupby(values, lambda value: (value.operation, value.inputs)):
        yield list(made)


def _is_identity(group: list[Value], trace: Trace) -> bool:
    first = group[0]
    if _operation(first) in _COPIES or _has_constant_mask(first, trace):
        return False
    if not first.is_data and _operation(first) in _OF_ALL:
        return False
    if _is_clamped_variance(first, trace) or _is_guarded_norm(first, trace):
        return False
    same = [any(_is_same(value, trace.values[number]) for number in value.inputs) for value in group]
    return all(same) if first.operation.endswith("_") else any(same)  # memory beside what is written stays as it was


def _operation(value: Value) -> str:
    """The name of an operation, of one that works in place that of the other."""
    return value.operation if value.operation in _COPIES else value.operation.removesuffix("_")


def _label(value: Value) -> str:
    return value.operation if value.place is None else f"{value.operation} at {value.place}"


def _is_same(value: Value, earlier: Value) -> bool:
    if not (earlier.is_data or earlier.leaves) or earlier.array.shape != value.array.shape or not value.size:
        return False
    # A variance is never negative, so that clamping it at 0 changes nothing on any input.
    safe = value.operation == "max" and value.array.min() >= 0
    return not safe and np.array_equal(earlier.array, value.array)


def _is_clamped_variance(value: Value, trace: Trace) -> bool:
    """Whether a value is the variance, along one axis, of another of which it is made, held at 0."""
    if value.operation != "relu":
        return False
    sources, array = set(value.inputs), value.array
    for earlier in reversed(trace.values[max(0, value.number - _NEAR) : value.number]):
        if earlier.number in sources:
            sources.update(earlier.inputs)
            for axis in range(earlier.array.ndim) if earlier.is_data and earlier.size > array.size else ():
                variance = np.var(earlier.array, axis)
                if variance.size == array.size:
                    rounding = _ROUNDINGS * np.finfo(array.dtype).eps * np.mean(np.square(earlier.array), axis)
                    if (np.abs(variance.ravel() - array.ravel()) <= rounding.ravel()).all():
                        return True
    return False


def _is_guarded_norm(value: Value, trace: Trace) -> bool:
    """Whether a value is a norm or variance of parameters that is held above some eps, as before a division by it."""
    if value.is_data or _operation(value) not in _LOWER_LIMITS or not value.size or value.array.min() < 0:
        return False
    sizes = (math.prod(trace.parameters.get(name, ())) for name in value.leaves)
    return value.size < max(sizes, default=0)


# So many operations before, a variance by moments has begun.
_NEAR = 16

# By so many roundings of the mean square may a variance by moments be off.
_ROUNDINGS = 64


def _is_constant_limit(value: Value, trace: Trace) -> bool:
    """Whether a limit gives one number throughout, although it is given several, or its mask depends on the input.

    One number alone is such where it is none of those that it was made of.
    """
    if _has_constant_mask(value, trace):
        return False
    sources = [trace.values[number] for number in value.inputs]
    made = [source for source in sources if (source.is_data or source.leaves) and source.size == value.size]
    if value.size == 1:
        held = value.array.flat[0]
        return _operation(value) != "relu" and bool(made) and all(source.array.flat[0] != held for source in made)
    if not _is_one_number(value):
        return False
    varies = (source.array.shape == value.array.shape and not _is_one_number(source) for source in made)
    return _operation(value) in _BY_MASK or any(varies)


def _has_constant_mask(value: Value, trace: Trace) -> bool:
    """Whether an operation chooses by a mask that neither the input nor a parameter changes."""
    position = _BY_MASK.get(_operation(value), len(value.inputs))
    masks = value.inputs[position : position + 1]
    return any(_is_constant(trace.values[mask], trace) for mask in masks)


def _is_constant(value: Value, trace: Trace) -> bool:
    """Whether a value is made of constants alone; of what is no float, leaves are not kept."""
    waiting, seen = [value.number], set[int]()
    while waiting:
        number = waiting.pop()
        if number not in seen:
            seen.add(number)
            made = trace.values[number]
            if made.is_data or made.leaves:
                return False
            waiting.extend(made.inputs)
    return True


def _is_one_number(value: Value) -> bool:
    return value.size > 1 and bool((value.array == value.array.flat[0]).all())
