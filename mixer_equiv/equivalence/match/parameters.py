"""Which parameters of a trace turn a given array into one of its values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mixer_equiv.equivalence.match.axes import axis_orders, reorder_axes
from mixer_equiv.equivalence.record.fingerprint import TOLERANCE, Fingerprint
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What the trace has for a parameter: an operand, with the program's axes in its own order.

    `order` are the places of the program's axes, as they follow each other in the operand, and
    `sizes` their sizes in the program's order. Without an operand the parameter is absent, or
    nothing is known of it. `then` are kernel and bias of a second layer, into which the first leads.
    """

    operand: Value | None
    order: tuple[int, ...] = (0,)
    sizes: tuple[int, ...] = ()
    is_known: bool = True
    then: tuple[Assignment, Assignment] | None = None


@dataclasses.dataclass(frozen=True)
class LayerFit:
    """A value of the trace, as a computed array, and the parameters that make it."""

    array: Array
    value: Value
    first: Assignment
    second: Assignment


# How many kernels are tried on an array that is itself a guess.
NEXT_KERNELS = 12


class ParameterSearch:
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
        own = Fingerprint(array) if candidates else None
        return (value for value in candidates if own is not None and own.matches(value.fingerprint))

    # Kernels

    def linear(
        self, axes: int, x: Array, position: int, *, guessed: bool = False, plus: Array | None = None
    ) -> list[LayerFit]:
        """Kernels over the last `axes` axes of `x`, and biases, that give a value of the trace, the likeliest first.

        For an `x` that is only guessed, none but the kernels used next. With `plus`, the value has
        this added to it, and the fit's array has not.
        """
        width = math.prod(x.shape[x.ndim - axes :])

        def fits() -> list[LayerFit]:
            ranked = sorted(self.trace.operands, key=lambda operand: self._next_use(operand, position))
            suited = [operand for operand in ranked if operand.size % width == 0]
            return list(self._kernels(x, axes, suited[:NEXT_KERNELS] if guessed else suited, plus))

        arrays = (x,) if plus is None else (x, plus)
        found: list[LayerFit] = self.once(("linear", axes, guessed), fits, *arrays)
        return sorted(
            found, key=lambda fit: (fit.value.number <= position, fit.second.operand is None, fit.value.number)
        )

    def _next_use(self, operand: Value, position: int) -> tuple[bool, int]:
        """When the trace assignments it next, what is never used again at the end."""
        after = [number for number in self.trace.uses.get(operand.leaves, ()) if number > position]
        return not after, min(after, default=0)

    def _kernels(self, x: Array, axes: int, operands: list[Value], plus: Array | None) -> Iterator[LayerFit]:
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
            for order in axis_orders(sizes, operand.array.shape):
                if not self._may_be(flat, operand, sizes, order, added):
                    continue
                core = flat @ reorder_axes(operand.array, sizes, order).reshape(width, out)
                shifted = self._shifted(core if plus is None else core + plus.reshape(core.shape))
                for value, bias in shifted:
                    array = core if bias.operand is None else core + bias.operand.array.reshape(-1)
                    yield LayerFit(array.reshape(*kept, out), value, Assignment(operand, order, sizes), bias)
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
            lambda: reorder_axes(operand.array, sizes, order).reshape(-1, out).sum(axis=1),
        )
        vectors, _ = self._vectors(out)
        totals = float(sums @ kernel) + added + rows * vectors.sum(axis=1)
        wanted, spreads = self._totals(rows * out)
        return bool((np.abs(totals[:, None] - wanted) <= TOLERANCE * spreads).any())

    def _totals(self, size: int) -> tuple[Array, Array]:
        """The totals of the trace's values of this size, and what their rounding is relative to."""

        def totals() -> tuple[Array, Array]:
            prints = [value.fingerprint for value in self.trace.by_size.get(size, ())]
            spreads = np.sqrt([size * p.squares for p in prints])
            return np.array([p.total for p in prints]), np.where(np.isfinite(spreads), spreads, 0.0)

        found: tuple[Array, Array] = self.once(("totals", size), totals)
        return found

    def _shifted(self, core: Array) -> list[tuple[Value, Assignment]]:
        """Values of the trace that are `core`, (rows, columns), plus a vector of it or nothing."""
        rows, columns = core.shape
        vectors, operands = self._vectors(columns)
        sums = core.sum(axis=0)
        totals = sums.sum() + rows * vectors.sum(axis=1)
        squares = np.square(core).sum() + 2 * vectors @ sums + rows * np.square(vectors).sum(axis=1)
        return [
            (value, Assignment(operands[i], sizes=(columns,)))
            for value in self.trace.by_size[core.size]
            for i in np.flatnonzero(_near(totals, squares, value.fingerprint))
            if Fingerprint(core + vectors[i]).matches(value.fingerprint)
        ]

    # Scales and biases

    def affine(self, x: Array, position: int) -> list[LayerFit]:
        """Scales and biases along the last axis of `x`, 1 and 0 among them, that give a value of the trace."""

        def fits() -> list[LayerFit]:
            return [
                LayerFit((core * scale + bias).reshape(x.shape), value, first, second)
                for core in (x.reshape(-1, x.shape[-1]),)
                for first, scale, second, bias, value in self._scaled(core)
            ]

        found: list[LayerFit] = self.once("affine", fits, x)
        return sorted(
            found,
            key=lambda fit: (
                fit.value.number <= position,
                (fit.first.operand is None) + (fit.second.operand is None),
                fit.value.number,
            ),
        )

    def _scaled(self, core: Array) -> Iterator[tuple[Assignment, Array, Assignment, Array, Value]]:
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
            for i, j in zip(*np.nonzero(_near(totals, squares, value.fingerprint)), strict=True):
                if Fingerprint(core * scales[i] + vectors[j]).matches(value.fingerprint):
                    assignments = (Assignment(operands[k], sizes=(columns,)) for k in (i, j))
                    yield next(assignments), scales[i], next(assignments), vectors[j], value

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
            for order in axis_orders(inner, operand.array.shape) if operand.size == math.prod(inner) else ():
                array = x + reorder_axes(operand.array, inner, order)
                if value := self.find(array, position):
                    yield array, value, operand


def _near(totals: Array, squares: Array, wanted: Fingerprint) -> Array:
    near: Array = np.abs(squares - wanted.squares) <= TOLERANCE * wanted.squares
    return near & (np.abs(totals - wanted.total) <= TOLERANCE * np.sqrt(wanted.size * wanted.squares))
