"""`batch_norms`: values of a trace that are a BatchNorm of an array in eval mode.

There it is one affine function for each channel. Statistics, which are no parameters or more than a scale and a bias,
tell it from a layer with these alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mixer_equiv.equivalence.match.axes import axis_orders, reorder_axes
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array

# The rows from which an affine function is told: a line goes through any two.
LEAST_ROWS = 4


def batch_norms(x: Array, position: int, last: int, trace: Trace) -> Iterator[tuple[Array, Value, tuple[str, ...]]]:
    """Values between two places of the trace that are a BatchNorm of `x`, (batch, ..., channels), in its order.

    With each come the names of the parameters in it.
    """
    if x.size < LEAST_ROWS * x.shape[-1]:
        return
    for value in trace.by_size.get(x.size, ()):
        if position < value.number <= last:
            for order in axis_orders(x.shape, value.array.shape):
                array = reorder_axes(value.array, x.shape, order)
                if is_affine(x, array) and (names := _statistics(value, position, x.shape[-1], trace)) is not None:
                    yield array, value, names


def is_affine(x: Array, y: Array) -> bool:
    """Whether each column of `y` is a line of that of `x`, (..., columns)."""
    x, y = (array.reshape(-1, array.shape[-1]) for array in (x, y))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    with np.errstate(all="ignore"):  # a column of one number has no slope
        slopes = (x * y).sum(axis=0) / np.square(x).sum(axis=0)
        return bool(np.linalg.norm(y - slopes * x) <= TOLERANCE * np.linalg.norm(y))


def _statistics(value: Value, position: int, channels: int, trace: Trace) -> tuple[str, ...] | None:
    """The parameters of which the trace made a value since `position`, if it took statistics too; else None."""
    names: set[str] = set()
    vectors: set[int] = set()
    pending, seen = [value.number], set[int]()
    while pending:
        source = trace.values[pending.pop()]
        if source.number in seen:
            continue
        seen.add(source.number)
        if not source.is_data and not source.inputs:
            names |= source.leaves
            vectors |= {source.number} if source.size == channels else set()
        elif source.number > position or not source.is_data:
            pending += source.inputs
    return tuple(sorted(names)) if len(vectors) > len(names) or len(names) > 2 else None
