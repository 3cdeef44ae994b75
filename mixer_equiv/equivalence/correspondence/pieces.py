"""`Piece`: a parameter, or the part of one that goes a way of its own; and the ways to lay one out as another.

Nothing here runs a model. Start at `Piece` and `Candidate`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from mixer_equiv.equivalence.match.axes import reorder_axes
from mixer_equiv.equivalence.record.array_fingerprint import Fingerprint

Shape = tuple[int, ...]

# The most axes into which an array is taken apart: 720 orders.
_MOST_AXES = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """A parameter of `shape`, or if there is an `axis`, what it has there at `indices`."""

    name: str
    whole: Shape
    axis: int = 0
    indices: tuple[int, ...] | None = None

    @cached_property
    def shape(self) -> Shape:
        if self.indices is None:
            return self.whole
        return (*self.whole[: self.axis], len(self.indices), *self.whole[self.axis + 1 :])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_part(self) -> bool:
        return self.indices is not None

    def take(self, array: np.ndarray) -> np.ndarray:
        """The piece of the whole parameter."""
        return array if self.indices is None else np.take(array, self.indices, self.axis)

    def put(self, part: np.ndarray, into: np.ndarray) -> None:
        """Put the piece into the whole parameter."""
        if self.indices is None:
            into[...] = part.reshape(into.shape)
        else:
            into[(slice(None),) * self.axis + (list(self.indices),)] = part.reshape(self.shape)


def piece_with(name: str, touched: np.ndarray) -> Piece | None:
    """The piece that has the elements that are `touched`, if all at some indices of one axis are, and no others."""
    if touched.all():
        return Piece(name, touched.shape)
    for axis in range(touched.ndim):
        others = tuple(i for i in range(touched.ndim) if i != axis)
        along = np.atleast_1d(touched.all(axis=others))
        if along.any() and np.count_nonzero(along) * (touched.size // len(along)) == np.count_nonzero(touched):
            return Piece(name, touched.shape, axis, tuple(np.flatnonzero(along).tolist()))
    return None


# The number of an operand that the model does not have: a constant in the place of a parameter.
ABSENT = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Operand:
    """What a model has to offer: a parameter, a part of one, or what it makes of some.

    Attributes:
        number: Its place among the operands.
        array: The array in float64.
        names: The parameters of which it is made.
        piece: The parameter or part that it is; None for what is computed.
        node: The number of the node that gives it, or where it was cut out, the one that takes it.
    """

    number: int
    array: np.ndarray
    names: tuple[str, ...]
    piece: Piece | None
    node: int

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.array)

    @property
    def is_part(self) -> bool:
        return self.piece is not None and self.piece.is_part

    @property
    def is_computed(self) -> bool:
        return self.piece is None and self.number != ABSENT


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """An operand whose axes, taken apart to `sizes`, follow in `order`; joined, they have the wanted `shape`."""

    operand: Operand
    sizes: Shape
    order: Shape
    shape: Shape

    def of(self, operand: Operand) -> Candidate:
        """The same, of another operand of its shape."""
        return Candidate(operand, self.sizes, self.order, self.shape)

    @property
    def is_absent(self) -> bool:
        return self.operand.number == ABSENT

    @cached_property
    def array(self) -> np.ndarray:
        return reorder_axes(self.operand.array, self.sizes, self.order).reshape(self.shape)


def splits_of(reshapes: Iterable[tuple[Shape, Shape]]) -> dict[int, tuple[Shape, ...]]:
    """How reshapes take axes of each length apart, or join axes to one of that length."""
    found: dict[int, dict[Shape, None]] = {}
    for before, after in reshapes:
        for coarse, fine in aligned(before, after):
            one, several = (coarse, fine) if len(coarse) == 1 else (fine, coarse)
            several = tuple(length for length in several if length > 1)
            if len(one) == 1 and 1 < len(several) < 5:
                found.setdefault(one[0], {})[several] = None
    return {length: tuple(ways) for length, ways in found.items()}


def aligned(before: Shape, after: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Neighbouring axes before and after a reshape that have the same elements, as few as possible together."""
    i = j = 0
    while i < len(before) and j < len(after):
        start, begin = i, j
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right and i < len(before):
                left, i = left * before[i], i + 1
            elif j < len(after):
                right, j = right * after[j], j + 1
            else:
                return
        yield before[start:i], after[begin:j]


def refined(shape: Shape, splits: dict[int, tuple[Shape, ...]], theirs: Shape) -> tuple[Shape, ...]:
    """The shape, and those in which one axis is taken apart as the model does, or as axes of `theirs`."""
    found = [shape]
    for axis, length in enumerate(shape):
        ways = [*splits.get(length, ()), *_factors(length, theirs)]
        found += [(*shape[:axis], *way, *shape[axis + 1 :]) for way in ways]
    return tuple(dict.fromkeys(sizes for sizes in found if len(sizes) <= _MOST_AXES))


def _factors(length: int, theirs: Shape) -> Iterator[Shape]:
    kept = [n for n in theirs if 1 < n < length]
    for count in (2, 3):
        for way in itertools.permutations(kept, count):
            if math.prod(way) == length:
                yield way


def cut_splits(splits: dict[int, tuple[Shape, ...]], length: int, kept: int) -> tuple[Shape, ...]:
    """How an axis of `length`, of which a part of `kept` is cut out, is taken apart within this part."""
    parts = [
        tuple(n for j, n in enumerate(way) if j != i)
        for way in splits.get(length, ())
        for i, n in enumerate(way)
        if length == n * kept
    ]
    return tuple(dict.fromkeys(way for way in parts if len(way) > 1))


def is_in_order(order: Sequence[int]) -> bool:
    """Whether axes follow as they are."""
    return list(order) == sorted(order)
