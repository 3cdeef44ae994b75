"""`ParameterSearch`: the parameters of a trace that turn a given array into one of its values.

An operand is an array that the trace made of parameters alone: a parameter, a part of one, or one computed
from several. Operands are tried in every order of their axes, and a product is computed only where its
total occurs in the trace. Nothing here knows programs or steps. Start at `fit_linear`.

A search between any two models would also join operands or split them (fused q, k and v): in `_fit_kernels`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from mixer_equiv.equivalence.match.axes import axis_orders, reorder_axes
from mixer_equiv.equivalence.match.bias_rows import bias_rows, sizes_with_ones
from mixer_equiv.equivalence.match.parts import PartFinder
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE, Fingerprint
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class AssignedOperand:
    """A program's parameter that is an operand of the trace.

    Attributes:
        operand: The operand.
        sizes: The sizes of the program's axes, in the program's order.
        order: The places of the program's axes, as they follow each other in the operand.
        second_layer: Kernel and bias of a second layer, into which the first leads.
    """

    operand: Value
    sizes: tuple[int, ...]
    order: tuple[int, ...] = (0,)
    second_layer: tuple[KnownAssignment, KnownAssignment] | None = None


@dataclasses.dataclass(frozen=True)
class AbsentParameter:
    """A parameter of the program that the traced model does not have, such as the bias of a Dense without one."""

    sizes: tuple[int, ...]
    second_layer: tuple[KnownAssignment, KnownAssignment] | None = None


@dataclasses.dataclass(frozen=True)
class UnknownParameter:
    """A program's parameter whose step was left out or was not recognised."""


KnownAssignment = AssignedOperand | AbsentParameter
Assignment = KnownAssignment | UnknownParameter


@dataclasses.dataclass(frozen=True)
class LayerFit:
    """A value of the trace, with the kernel (or scale) and bias that make it; `array` is in the program's order."""

    array: Array
    value: Value
    weight: KnownAssignment
    bias: KnownAssignment

    @property
    def num_operands(self) -> int:
        return sum(isinstance(assignment, AssignedOperand) for assignment in (self.weight, self.bias))

    @property
    def has_bias(self) -> bool:
        return isinstance(self.bias, AssignedOperand)

    @property
    def uses_part(self) -> bool:
        """Whether its kernel is no parameter, but a part of one or computed from several."""
        return isinstance(self.weight, AssignedOperand) and self.weight.operand.name is None


# How many kernels are tried on an array that is itself a guess.
NEXT_KERNELS = 12


class ParameterSearch:
    """Finds values and parameters of one trace, and caches every answer."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.parts = trace, PartFinder(trace)
        self.sizes_with_ones = sizes_with_ones(trace)
        self._answers: dict[Any, Any] = {}
        self._alive: list[Any] = []  # arrays whose ids are in keys, so that none is used twice

    def cached(self, key: Any, compute: Callable[[], T], *arrays: Array) -> T:
        """`compute()`, the first time that it is asked for under this key and with these arrays."""
        key = (key, *map(id, arrays))
        if key not in self._answers:
            self._alive.extend(arrays)
            with np.errstate(all="ignore"):
                self._answers[key] = compute()
        answer: T = self._answers[key]
        return answer

    def find_value(self, array: Array, position: int) -> Value | None:
        """The value of the trace with these elements, whole or in parts: of several the next one after `position`."""
        return _next_of(self.cached("value", lambda: self._values_like(array), array), position)

    def find_new(self, array: Array, position: int) -> Value | None:
        """The same for an array that is made to be asked for once, and is not kept."""
        with np.errstate(all="ignore"):
            return _next_of(self._values_like(array), position)

    def _values_like(self, array: Array) -> list[Value]:
        if candidates := self.trace.by_size.get(array.size):
            own = Fingerprint(array)
            if whole := [value for value in candidates if own.matches(value.fingerprint)]:
                return whole
        in_parts = self.parts.find(array)
        return [] if in_parts is None else [in_parts]

    # Kernels

    def fit_linear(
        self, axes: int, x: Array, position: int, *, guessed: bool = False, plus: Array | None = None
    ) -> list[LayerFit]:
        """Find kernels over the last `axes` axes of `x`, and biases, that give a value of the trace, likeliest first.

        For an `x` that is only guessed, only the kernels used next are tried. `plus` is added to what the fit
        computes before it is compared with the trace, as where a residual is added in the same product.
        """
        width = math.prod(x.shape[x.ndim - axes :])

        def fits() -> list[LayerFit]:
            suited = [operand for operand in self.operands_by_use(position) if operand.size % width == 0]
            whole = list(self._fit_kernels(x, axes, suited[:NEXT_KERNELS] if guessed else suited, plus))
            if plus is None and all(fit.uses_part for fit in whole):
                whole = [*self._fit_in_parts(x, axes, _larger(suited, whole)), *whole]
            return whole or list(self._fit_bias_rows(x, axes, position))

        arrays = (x,) if plus is None else (x, plus)
        found = self.cached(("linear", axes, guessed), fits, *arrays)
        return sorted(found, key=lambda fit: (fit.value.number <= position, not fit.has_bias, fit.value.number))

    def fit_kernel(self, axes: int, x: Array, operand: Value) -> list[LayerFit]:
        """The same for one operand as the kernel, where the trace has the result as a whole."""
        return list(self._fit_kernels(x, axes, [operand], None))

    def operands_by_use(self, position: int) -> list[Value]:
        """The operands in the order of their next uses after `position`."""
        return sorted(self.trace.operands, key=lambda operand: self._next_use(operand, position))

    def _next_use(self, operand: Value, position: int) -> tuple[bool, int]:
        """A sort key by the operand's next use after `position`; operands that are used no more come last."""
        after = [number for number in self.trace.uses.get(operand.leaves, ()) if number > position]
        return not after, min(after, default=0)

    def _fit_kernels(self, x: Array, axes: int, operands: list[Value], plus: Array | None) -> Iterator[LayerFit]:
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
                if not self._total_occurs(flat, operand, sizes, order, added):
                    continue
                core = flat @ reorder_axes(operand.array, sizes, order).reshape(width, out)
                biases = self.fit_biases(core if plus is None else core + plus.reshape(core.shape))
                for value, bias in biases:
                    array = core + bias.operand.array.reshape(-1) if isinstance(bias, AssignedOperand) else core
                    yield LayerFit(array.reshape(*kept, out), value, AssignedOperand(operand, sizes, order), bias)
                if any(isinstance(bias, AssignedOperand) for _, bias in biases):
                    return

    def _total_occurs(
        self, flat: Array, operand: Value, sizes: tuple[int, ...], order: tuple[int, ...], added: float
    ) -> bool:
        """Whether the product with a kernel can give a value of the trace, by its total, which costs no product."""
        rows, out = len(flat), sizes[-1]
        sums = self.cached("columns", lambda: flat.sum(axis=0), flat)
        kernel = self.cached(
            ("rows", operand.number, sizes, order),
            lambda: reorder_axes(operand.array, sizes, order).reshape(-1, out).sum(axis=1),
        )
        vectors, _ = self._vectors(out)
        totals = float(sums @ kernel) + added + rows * vectors.sum(axis=1)
        wanted, spreads = self._totals(rows * out)
        return bool((np.abs(totals[:, None] - wanted) <= TOLERANCE * spreads).any())

    def _totals(self, size: int) -> tuple[Array, Array]:
        """The totals of the trace's values of this size, and the scales of their rounding."""

        def totals() -> tuple[Array, Array]:
            fingerprints = [value.fingerprint for value in self.trace.by_size.get(size, ())]
            spreads = np.sqrt([size * fingerprint.squares for fingerprint in fingerprints])
            totals = np.array([fingerprint.total for fingerprint in fingerprints])
            return totals, np.where(np.isfinite(spreads), spreads, 0.0)

        return self.cached(("totals", size), totals)

    def fit_biases(self, core: Array) -> list[tuple[Value, KnownAssignment]]:
        """Values of the trace that are `core`, (rows, columns), plus a vector of it or nothing."""
        rows, columns = core.shape
        vectors, operands = self._vectors(columns)
        sums = core.sum(axis=0)
        totals = sums.sum() + rows * vectors.sum(axis=1)
        squares = np.square(core).sum() + 2 * vectors @ sums + rows * np.square(vectors).sum(axis=1)
        return [
            (value, _vector(operands[i], columns))
            for value in self.trace.by_size.get(core.size, ())
            for i in np.flatnonzero(is_near(totals, squares, value.fingerprint))
            if Fingerprint(core + vectors[i]).matches(value.fingerprint)
        ]

    def _fit_in_parts(self, x: Array, axes: int, operands: list[Value]) -> Iterator[LayerFit]:
        """Kernels that meet the data more than once, and biases, that give an array which the trace has in parts."""
        contracted, kept = x.shape[x.ndim - axes :], x.shape[: x.ndim - axes]
        width = math.prod(contracted)
        flat = x.reshape(-1, width)
        for operand in operands:
            if len(self.trace.uses.get(operand.leaves, ())) < 2:
                continue
            sizes = (*contracted, operand.size // width)
            vectors, biases = self._vectors(sizes[-1])
            for order in axis_orders(sizes, operand.array.shape):
                kernel = reorder_axes(operand.array, sizes, order)
                corners = flat[0] @ kernel[..., 0].reshape(-1) + vectors[:, 0]
                likely = np.flatnonzero(self.parts.begins(corners))
                core = flat @ kernel.reshape(width, -1) if len(likely) else flat
                for i in likely:
                    array = (core + vectors[i]).reshape(*kept, sizes[-1])
                    if (value := self.parts.find(array)) is not None:
                        weight = AssignedOperand(operand, sizes, order)
                        yield LayerFit(array, value, weight, _vector(biases[i], sizes[-1]))

    def _fit_bias_rows(self, x: Array, axes: int, position: int) -> Iterator[LayerFit]:
        """Kernels of which one row is the bias, where the trace has `x` with a column of ones."""
        contracted, kept = x.shape[x.ndim - axes :], x.shape[: x.ndim - axes]
        width = math.prod(contracted)
        flat = x.reshape(-1, width)
        if x.size + len(flat) not in self.sizes_with_ones:
            return
        for operand in (operand for operand in self.trace.operands if operand.size % (width + 1) == 0):
            sizes = (*contracted, operand.size // (width + 1))
            for kernel, bias in bias_rows(operand, width):
                for order in axis_orders(sizes, kernel.array.shape):
                    core = flat @ reorder_axes(kernel.array, sizes, order).reshape(width, -1)
                    array = (core + bias.array).reshape(*kept, sizes[-1])
                    if (value := self.find_value(array, position)) is not None:
                        yield LayerFit(array, value, AssignedOperand(kernel, sizes, order), _vector(bias, sizes[-1]))

    # Scales and biases

    def fit_affine(self, x: Array, position: int) -> list[LayerFit]:
        """Find scales and biases along the last axis of `x`, or none, that give a value of the trace."""
        found = self.cached("affine", lambda: list(self._fit_scales(x)) or list(self._fit_scales_in_parts(x)), x)
        return sorted(found, key=lambda fit: (fit.value.number <= position, -fit.num_operands, fit.value.number))

    def _fit_scales(self, x: Array) -> Iterator[LayerFit]:
        """Values of the trace that are `x` times a vector of it or 1, plus a vector or nothing."""
        if x.size not in self.trace.by_size:
            return
        core = x.reshape(-1, x.shape[-1])
        rows, columns = core.shape
        vectors, operands = self._vectors(columns)
        scales = np.concatenate([np.ones((1, columns)), vectors[1:]])
        totals = (scales @ core.sum(axis=0))[:, None] + rows * vectors.sum(axis=1)
        squares = (np.square(scales) @ np.square(core).sum(axis=0))[:, None]
        squares = squares + 2 * (scales * core.sum(axis=0)) @ vectors.T + rows * np.square(vectors).sum(axis=1)
        candidates = SortedFingerprints(totals, squares)
        for value in self.trace.by_size[core.size]:
            for i, j in candidates.near(value.fingerprint):
                array = core * scales[i] + vectors[j]
                if Fingerprint(array).matches(value.fingerprint):
                    weight, bias = (_vector(operands[k], columns) for k in (i, j))
                    yield LayerFit(array.reshape(x.shape), value, weight, bias)

    def _fit_scales_in_parts(self, x: Array) -> Iterator[LayerFit]:
        """The same, of arrays that the trace has in parts."""
        core = x.reshape(-1, x.shape[-1])
        columns = core.shape[1]
        vectors, operands = self._vectors(columns)
        scales = np.concatenate([np.ones((1, columns)), vectors[1:]])
        corners = core[0, 0] * scales[:, :1] + vectors[:, 0]
        for i, j in np.argwhere(self.parts.begins(corners)):
            array = (core * scales[i] + vectors[j]).reshape(x.shape)
            if (value := self.parts.find(array)) is not None:
                yield LayerFit(array, value, _vector(operands[i], columns), _vector(operands[j], columns))

    def _vectors(self, length: int) -> tuple[Array, list[Value | None]]:
        """All operands of so many elements, by rows, after a row of zeros, which is no operand."""

        def stack() -> tuple[Array, list[Value | None]]:
            found = [operand for operand in self.trace.operands if operand.size == length]
            return np.stack([np.zeros(length), *(operand.array.reshape(-1) for operand in found)]), [None, *found]

        return self.cached(("vectors", length), stack)

    def fit_embedding(self, x: Array, position: int) -> Iterator[tuple[Array, Value, AssignedOperand]]:
        """Find values of the trace that are `x` plus an operand over all its axes but the first."""
        inner = x.shape[1:]
        for operand in self.trace.operands:
            for order in axis_orders(inner, operand.array.shape) if operand.size == math.prod(inner) else ():
                array = x + reorder_axes(operand.array, inner, order)
                if value := self.find_value(array, position):
                    yield array, value, AssignedOperand(operand, inner, order)


def _larger(operands: list[Value], fits: list[LayerFit]) -> list[Value]:
    """Operands of which the kernels of these fits are parts, so that others of their parts may be in the same layer."""
    kernels = [fit.weight.operand for fit in fits if isinstance(fit.weight, AssignedOperand)]
    return [
        operand
        for operand in operands
        if not fits or any(operand.leaves == k.leaves and operand.size > k.size for k in kernels)
    ]


def operand_names(*assignments: Assignment) -> tuple[str, ...]:
    """The names of the trace's parameters in these operands."""
    operands = [assignment.operand for assignment in assignments if isinstance(assignment, AssignedOperand)]
    return tuple(name for operand in operands for name in sorted(operand.leaves))


def _next_of(values: list[Value], position: int) -> Value | None:
    """The next value after `position`, or else the first."""
    return min(values, key=lambda value: (value.number < position, value.number), default=None)


def _vector(operand: Value | None, length: int) -> KnownAssignment:
    return AbsentParameter((length,)) if operand is None else AssignedOperand(operand, (length,))


class SortedFingerprints:
    """The totals and sums of squares of many arrays, sorted by the latter, so that few are compared with a value."""

    def __init__(self, totals: Array, squares: Array) -> None:
        self.shape, self.totals, self.squares = squares.shape, totals.reshape(-1), squares.reshape(-1)
        self.order = np.argsort(self.squares)
        self.ascending = self.squares[self.order]

    def near(self, wanted: Fingerprint) -> Iterator[tuple[int, ...]]:
        """The indices, in order, of the arrays that may be the value with this fingerprint."""
        first = self.ascending.searchsorted(wanted.squares * (1 - 2 * TOLERANCE), "left")
        last = self.ascending.searchsorted(wanted.squares * (1 + 2 * TOLERANCE), "right")
        if first == last:
            return iter(())
        places = np.sort(self.order[first:last])
        places = places[is_near(self.totals[places], self.squares[places], wanted)]
        return zip(*(axis.tolist() for axis in np.unravel_index(places, self.shape)), strict=True)


def is_near(totals: Array, squares: Array, wanted: Fingerprint) -> Array:
    near: Array = np.abs(squares - wanted.squares) <= TOLERANCE * wanted.squares
    return near & (np.abs(totals - wanted.total) <= TOLERANCE * np.sqrt(wanted.size * wanted.squares))
