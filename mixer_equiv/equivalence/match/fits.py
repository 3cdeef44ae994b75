"""Which parameters of a trace turn a given array into one of its values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mixer_equiv.equivalence.record.trace import TOLERANCE, Print, Trace, Value
from mixer_equiv.operations import Array


@dataclasses.dataclass(frozen=True)
class Use:
    """What the trace has for a parameter: an operand, with the program's axes in its own order.

    `order` are the places of the program's axes, as they follow each other in the operand, and
    `sizes` their sizes in the program's order. Without an operand the parameter is absent, or
    nothing is known of it. `then` are kernel and bias of a second layer, into which the first leads.
    """

    operand: Value | None
    order: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = ()
    is_known: bool = True
    then: tuple[Use, Use] | None = None


@dataclasses.dataclass(frozen=True)
class Fit:
    """A value of the trace, as a computed array, and the parameters that make it."""

    array: Array
    value: Value
    first: Use
    second: Use


# How many kernels are tried on an array that is itself a guess.
NEXT_KERNELS = 12


class Fits:
    """Answers for one trace, each worked out once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._kept: dict[Any, Any] = {}
        self._alive: list[Any] = []  # arrays whose ids are in keys, so that none is used twice

    def once(self, what: Any, make: Callable[[], Any], *arrays: Array) -> Any:
        """`make()`, the first time that it is asked for with these arrays."""
        key = (what, *map(id, arrays))
        if key not in self._kept:
            self._alive.extend(arrays)
            with np.errstate(all="ignore"):
                self._kept[key] = make()
        return self._kept[key]

    def find(self, array: Array, position: int) -> Value | None:
        """The value of the trace with these elements, the next one after `position` if there are several."""
        found: list[Value] = self.once("find", lambda: list(self._alike(array)), array)
        return min(found, key=lambda value: (value.number < position, value.number), default=None)

    def _alike(self, array: Array) -> Iterator[Value]:
        candidates = self.trace.by_size.get(array.size, ())
        own = Print(array) if candidates else None
        return (value for value in candidates if own is not None and own.same(value.print))

    # Kernels

    def linear(
        self, axes: int, x: Array, position: int, *, guessed: bool = False, plus: Array | None = None
    ) -> list[Fit]:
        """Kernels over the last `axes` axes of `x`, and biases, that give a value of the trace, the likeliest first.

        For an `x` that is only guessed, none but the kernels used next. With `plus`, the value has
        this added to it, and the fit's array has not.
        """
        width = math.prod(x.shape[x.ndim - axes :])

        def fits() -> list[Fit]:
            ranked = sorted(self.trace.operands, key=lambda operand: self._next_use(operand, position))
            suited = [operand for operand in ranked if operand.size % width == 0]
            return list(self._kernels(x, axes, suited[:NEXT_KERNELS] if guessed else suited, plus))

        arrays = (x,) if plus is None else (x, plus)
        found: list[Fit] = self.once(("linear", axes, guessed), fits, *arrays)
        return sorted(
            found, key=lambda fit: (fit.value.number <= position, fit.second.operand is None, fit.value.number)
        )

    def _next_use(self, operand: Value, position: int) -> tuple[bool, int]:
        """When the trace uses it next, what is never used again at the end."""
        after = [number for number in self.trace.uses.get(operand.leaves, ()) if number > position]
        return not after, min(after, default=0)

    def _kernels(self, x: Array, axes: int, operands: list[Value], plus: Array | None) -> Iterator[Fit]:
        contracted, kept = x.shape[x.ndim - axes :], x.shape[: x.ndim - axes]
        width = math.prod(contracted)
        flat = x.reshape(-1, width)
        for operand in operands:
            out = operand.size // width
            # A part of a parameter that makes a single column may be one of many, as where tokens are mixed one by one.
            is_row = operand.name is None and operand.size == width and len(kept) > 1
            if len(flat) * out not in self.trace.by_size or is_row:
                continue
            if plus is not None and plus.shape != (*kept, out):
                continue
            sizes = (*contracted, out)
            added = 0.0 if plus is None else float(plus.sum())
            for order in orders(sizes, operand.array.shape):
                if not self._may_be(flat, operand, sizes, order, added):
                    continue
                core = flat @ in_order(operand.array, sizes, order).reshape(width, out)
                shifted = self._shifted(core if plus is None else core + plus.reshape(core.shape))
                for value, bias in shifted:
                    array = core if bias.operand is None else core + bias.operand.array.reshape(-1)
                    yield Fit(array.reshape(*kept, out), value, Use(operand, order, sizes), bias)
                if any(bias.operand is not None for _, bias in shifted):
                    return

    def _may_be(
        self, flat: Array, operand: Value, sizes: tuple[int, ...], order: tuple[int, ...], added: float
    ) -> bool:
        """Whether the product with a kernel may give a value of the trace, by its total, which costs no product."""
        rows, out = len(flat), sizes[-1]
        sums = self.once("columns", lambda: flat.sum(axis=0), flat)
        kernel = self.once(
            ("rows", operand.number, sizes, order),
            lambda: in_order(operand.array, sizes, order).reshape(-1, out).sum(axis=1),
        )
        vectors, _ = self._vectors(out)
        totals = float(sums @ kernel) + added + rows * vectors.sum(axis=1)
        wanted, spreads = self._totals(rows * out)
        return bool((np.abs(totals[:, None] - wanted) <= TOLERANCE * spreads).any())

    def _totals(self, size: int) -> tuple[Array, Array]:
        """The totals of the trace's values of this size, and what their rounding is relative to."""

        def totals() -> tuple[Array, Array]:
            prints = [value.print for value in self.trace.by_size.get(size, ())]
            spreads = np.sqrt([size * p.squares for p in prints])
            return np.array([p.total for p in prints]), np.where(np.isfinite(spreads), spreads, 0.0)

        found: tuple[Array, Array] = self.once(("totals", size), totals)
        return found

    def _shifted(self, core: Array) -> list[tuple[Value, Use]]:
        """Values of the trace that are `core`, (rows, columns), plus a vector of it or nothing."""
        rows, columns = core.shape
        vectors, operands = self._vectors(columns)
        sums = core.sum(axis=0)
        totals = sums.sum() + rows * vectors.sum(axis=1)
        squares = np.square(core).sum() + 2 * vectors @ sums + rows * np.square(vectors).sum(axis=1)
        return [
            (value, Use(operands[i], sizes=(columns,)))
            for value in self.trace.by_size[core.size]
            for i in np.flatnonzero(_near(totals, squares, value.print))
            if Print(core + vectors[i]).same(value.print)
        ]

    # Scales and biases

    def affine(self, x: Array, position: int) -> list[Fit]:
        """Scales and biases along the last axis of `x`, 1 and 0 among them, that give a value of the trace."""

        def fits() -> list[Fit]:
            return [
                Fit((core * scale + bias).reshape(x.shape), value, first, second)
                for core in (x.reshape(-1, x.shape[-1]),)
                for first, scale, second, bias, value in self._scaled(core)
            ]

        found: list[Fit] = self.once("affine", fits, x)
        return sorted(
            found,
            key=lambda fit: (
                fit.value.number <= position,
                (fit.first.operand is None) + (fit.second.operand is None),
                fit.value.number,
            ),
        )

    def _scaled(self, core: Array) -> Iterator[tuple[Use, Array, Use, Array, Value]]:
        """Values of the trace that are `core`, (rows, columns), times a vector of it or 1, plus one or nothing."""
        if core.size not in self.trace.by_size:
            return
        rows, columns = core.shape
        vectors, operands = self._vectors(columns)
        scales = np.concatenate([np.ones((1, columns)), vectors[1:]])
        totals = (scales @ core.sum(axis=0))[:, None] + rows * vectors.sum(axis=1)
        squares = (np.square(scales) @ np.square(core).sum(axis=0))[:, None]
        squares = squares + 2 * (scales * core.sum(axis=0)) @ vectors.T + rows * np.square(vectors).sum(axis=1)
        for value in self.trace.by_size[core.size]:
            for i, j in zip(*np.nonzero(_near(totals, squares, value.print)), strict=True):
                if Print(core * scales[i] + vectors[j]).same(value.print):
                    uses = (Use(operands[k], sizes=(columns,)) for k in (i, j))
                    yield next(uses), scales[i], next(uses), vectors[j], value

    def _vectors(self, length: int) -> tuple[Array, list[Value | None]]:
        """All operands of so many elements, by rows, after one of zeros."""

        def stack() -> tuple[Array, list[Value | None]]:
            found = [operand for operand in self.trace.operands if operand.size == length]
            return np.stack([np.zeros(length), *(operand.array.reshape(-1) for operand in found)]), [None, *found]

        vectors: tuple[Array, list[Value | None]] = self.once(("vectors", length), stack)
        return vectors

    def added(self, x: Array, position: int) -> Iterator[tuple[Array, Value, Value]]:
        """Values of the trace that are `x` plus an operand over all its axes but the first."""
        inner = x.shape[1:]
        for operand in self.trace.operands:
            for order in orders(inner, operand.array.shape) if operand.size == math.prod(inner) else ():
                array = x + in_order(operand.array, inner, order)
                if value := self.find(array, position):
                    yield array, value, operand


def _near(totals: Array, squares: Array, wanted: Print) -> Array:
    near: Array = np.abs(squares - wanted.squares) <= TOLERANCE * wanted.squares
    return near & (np.abs(totals - wanted.total) <= TOLERANCE * np.sqrt(wanted.size * wanted.squares))


def orders(sizes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes of these sizes in which they make up an array of this shape, axes of size 1 aside."""
    kept = tuple(size for size in shape if size != 1)
    for order in itertools.permutations(range(len(sizes))):
        if _groups(tuple(sizes[i] for i in order), kept):
            yield order


def _groups(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether neighbours among `sizes` can be joined to `shape`, or neighbours in `shape` to `sizes`."""
    fine, coarse = ({1, *itertools.accumulate(numbers, lambda a, b: a * b)} for numbers in (sizes, shape))
    return fine >= coarse or coarse >= fine


def in_order(array: Array, sizes: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """An array whose axes follow in this `order`, in the order of `sizes`."""
    return array.reshape([sizes[i] for i in order]).transpose(np.argsort(order))


def places_in(array: Array, meant: Array) -> Array:
    """Where in `array`, flat, each element of `meant` is, which has the same ones in another order."""
    places = np.empty(meant.size, np.intp)
    places[np.argsort(meant, axis=None)] = np.argsort(array, axis=None)
    return places


def arranged(array: Array, known: Array, meant: Array) -> Array:
    """`array` with its elements moved as those of `known` are to be the ones of `meant`."""
    result = np.empty(meant.size)
    result[np.argsort(meant, axis=None)] = array.reshape(-1)[np.argsort(known, axis=None)]
    return result.reshape(meant.shape)


def by_axes(array: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """`array` in every order of its axes that gives it this shape."""
    array = array.squeeze()
    for order in itertools.permutations(range(array.ndim)) if array.ndim == len(shape) else ():
        if tuple(array.shape[i] for i in order) == shape:
            yield array.transpose(order)
