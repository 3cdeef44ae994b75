"""`bias_rows`: an operand as a kernel and, in its first or last row, a bias.

Code that has a layer so gives it its input with a column of ones, by which the row is multiplied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mixer_equiv.equivalence.match.derived_operand import DerivedOperand
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array


@dataclasses.dataclass(frozen=True)
class _Split:
    """A kernel of so many rows, the bias among them at `place`, held as it is or transposed."""

    num_rows: int
    is_transposed: bool
    place: int

    def _rows(self, array: Array) -> Array:
        return array.reshape(-1, self.num_rows).T if self.is_transposed else array.reshape(self.num_rows, -1)

    def kernel(self, array: Array) -> Array:
        return np.delete(self._rows(array), self.place, axis=0)

    def bias(self, array: Array) -> Array:
        return self._rows(array)[self.place].copy()


def bias_rows(operand: Value, width: int) -> Iterator[tuple[DerivedOperand, DerivedOperand]]:
    """The kernels of `width` rows, each with a bias, that an operand of one row more may be."""
    for is_transposed in (False, True):
        for place in (-1, 0):
            split = _Split(width + 1, is_transposed, place)
            yield DerivedOperand.of([operand], split.kernel), DerivedOperand.of([operand], split.bias)


def sizes_with_ones(trace: Trace) -> frozenset[int]:
    """The sizes of values that begin or end with exactly 1, as all do that have a column of ones on either side."""
    return frozenset(
        value.size for value in trace.data if value.size and 1 in (value.array.flat[0], value.array.flat[-1])
    )
