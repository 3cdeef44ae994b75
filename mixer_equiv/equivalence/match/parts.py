"""`PartFinder`: an array that a trace has in several values, as where code takes some rows or hidden units at a time.

Whatever the parts are of (tokens, channels, images, units, or every other one of these), their elements are the
array's. So they are sought by elements, and nothing here knows axes, operations or programs.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array


@dataclasses.dataclass(eq=False)
class JoinedValue(Value):
    """An array whose elements several values of the trace have together; `inputs` are their numbers.

    Its own number is that of the first, since the steps of one part may all come before the next part.
    """


class PartFinder:
    """Finds the parts of arrays among the values of one trace."""

    def __init__(self, trace: Trace) -> None:
        self.values = [
            value for value in trace.data if not value.is_zero and value.size and value.array.dtype.kind in "fiub"
        ]
        self.sizes = np.array([value.size for value in self.values], np.intp)
        # The first element of an array is that of one of its parts, in whatever order of axes either is held.
        self.firsts = np.array([value.array.flat[0] for value in self.values], np.float64)
        self.ascending = np.sort(self.firsts)

    def begins(self, firsts: Array) -> Array:
        """Whether some value of the trace begins with each of these numbers."""
        return _are_among(self.ascending, firsts, TOLERANCE * (1 + np.abs(firsts)))

    def find(self, array: Array) -> JoinedValue | None:
        """The smaller values of the trace that hold all elements of an array, and no others."""
        if array.size < 2 or not self.begins(array.reshape(-1)[:1])[0] or not np.isfinite(array).all():
            return None
        elements = np.sort(array, axis=None)
        scale = TOLERANCE * float(np.abs(elements[[0, -1]]).max())
        likely = (self.sizes < array.size) & _are_among(elements, self.firsts, scale)
        parts = [self.values[i] for i in np.flatnonzero(likely)]
        parts = [part for part in parts if _are_among(elements, part.array, scale).all()]
        if sum(part.size for part in parts) < array.size:
            return None
        held = np.sort(np.concatenate([part.array.reshape(-1) for part in parts]))
        if not _are_among(held, elements, scale).all():
            return None
        numbers = tuple(part.number for part in parts)
        return JoinedValue(min(numbers), array, "parts", numbers)


def _are_among(ascending: Array, numbers: Array, tolerance: float | Array) -> Array:
    """Whether each of `numbers` is within the tolerance of one of the `ascending` ones."""
    if not len(ascending):
        return np.zeros(np.shape(numbers), bool)
    places = ascending.searchsorted(numbers)
    below, above = ascending[np.maximum(places - 1, 0)], ascending[np.minimum(places, len(ascending) - 1)]
    near: Array = np.minimum(np.abs(numbers - below), np.abs(numbers - above)) <= tolerance
    return near
