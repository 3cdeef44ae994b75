"""`JoinedLayers`: one layer of a program as several of a trace.

Code may have some of a layer's outputs in each of several layers, and then the next layer's inputs, whose results it
adds. It may also add to a layer what two others in a row give, as adapters of low rank do (LoRA). Nothing here knows
programs or steps.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mixer_equiv.equivalence.match.axes import reorder_axes
from mixer_equiv.equivalence.match.derived_operand import DerivedOperand
from mixer_equiv.equivalence.match.parameter_search import (
    AbsentParameter,
    AssignedOperand,
    KnownAssignment,
    LayerFit,
    ParameterSearch,
)
from mixer_equiv.equivalence.match.parts import JoinedValue
from mixer_equiv.equivalence.record.trace import Value
from mixer_equiv.operations import Array

# How many operands in a row, by their next use, may be no kernels over an array before the last is taken as found.
GAP = 4

# Of how many layers at most a sum is sought whose inputs are parts of an array.
MOST_PARTS = 16


_Pair = tuple[LayerFit, LayerFit]


class _LowRank:
    """A layer, and pairs of layers in a row, each times a number, that are added to it."""

    def __init__(self, plain: LayerFit, terms: tuple[tuple[_Pair, float], ...] = ()) -> None:
        self.plain, self.terms = plain, terms
        self.array = _sum([plain.array, *(factor * second.array for (_, second), factor in terms)])

    def adding(self, pair: _Pair, factor: float) -> _LowRank:
        return _LowRank(self.plain, (*self.terms, (pair, factor)))

    def fit(self, value: Value) -> LayerFit:
        """All of it as one layer."""
        pairs, factors = [pair for pair, _ in self.terms], [factor for _, factor in self.terms]

        def kernel(arrays: Sequence[Array]) -> Array:
            rest = zip(factors, arrays[1::2], arrays[2::2], strict=True)
            return _sum([arrays[0], *(factor * (a @ b) for factor, a, b in rest)])

        def bias(arrays: Sequence[Array]) -> Array:
            rest = zip(factors, arrays[1::3], arrays[2::3], arrays[3::3], strict=True)
            return _sum([arrays[0], *(factor * (a @ b + c) for factor, a, b, c in rest)])

        weight = _joined([self.plain.weight, *(fit.weight for pair in pairs for fit in pair)], kernel)
        if not any(fit.has_bias for pair in pairs for fit in pair):
            return LayerFit(self.array, value, weight, self.plain.bias)
        parts = [part for first, second in pairs for part in (first.bias, second.weight, second.bias)]
        return LayerFit(self.array, value, weight, _joined([self.plain.bias, *parts], bias))


class JoinedLayers:
    """Finds layers in several of one trace."""

    def __init__(self, parameters: ParameterSearch) -> None:
        self.parameters = parameters
        self._widths: dict[tuple[int, ...], None] = {}  # the numbers of outputs of several layers that are one

    def fit_outputs(self, axes: int, x: Array, position: int) -> LayerFit | None:
        """The layer over the last `axes` axes of `x` whose outputs are those of several layers, the first used first.

        There is none if one layer alone takes `x`.
        """
        found = self._layers_of(axes, x, position)
        if len(found) < 2:
            return None
        widths = tuple(fit.array.shape[-1] for fit in found)
        self._widths[widths] = None
        array = self.parameters.cached("joined", lambda: np.concatenate([fit.array for fit in found], -1), x)
        numbers = tuple(fit.value.number for fit in found)
        value = JoinedValue(min(numbers), array, "parts", numbers)
        side_by_side = functools.partial(np.concatenate, axis=-1)
        weights, biases = [fit.weight for fit in found], [fit.bias for fit in found]
        return LayerFit(array, value, _joined(weights, side_by_side), _joined(biases, side_by_side))

    def fit_means(self, axes: int, x: Array, position: int) -> Iterator[LayerFit]:
        """The layers over the last `axes` axes of `x` that are the sum of several, or the mean, as of two heads."""
        found = self._layers_of(axes, x, position)
        if len({fit.array.shape for fit in found}) == 1 < len(found):
            for mean in (_sum, _mean):
                array = self.parameters.cached(mean, functools.partial(mean, [fit.array for fit in found]), x)
                if (value := self.parameters.find_value(array, position)) is not None:
                    weight, bias = (_joined([getattr(fit, kind) for fit in found], mean) for kind in ("weight", "bias"))
                    yield LayerFit(array, value, weight, bias)

    def fit_low_rank(self, axes: int, x: Array, position: int) -> Iterator[LayerFit]:
        """The layers over the last `axes` axes of `x` that are the sum of one and, times numbers, of two in a row."""
        found = self._layers_of(axes, x, position)
        for plain in found if len(found) > 1 else ():
            pairs = [pair for fit in found if fit is not plain for pair in self._pairs(fit, plain)]
            yield from self._with_pairs(_LowRank(plain), pairs, position)

    def _with_pairs(self, begun: _LowRank, pairs: list[_Pair], position: int) -> Iterator[LayerFit]:
        """The sums that the trace has of what is begun and of one pair more, and of these in turn."""
        for pair in pairs:
            for factor in filter(math.isfinite, dict.fromkeys((1.0, *self.parameters.trace.scalars))):
                longer = begun.adding(pair, factor)
                if (value := self.parameters.find_new(longer.array, position)) is not None:
                    yield longer.fit(value)
                    yield from self._with_pairs(longer, [other for other in pairs if other is not pair], position)

    def _pairs(self, first: LayerFit, plain: LayerFit) -> list[_Pair]:
        """A layer with each behind it that gives as many outputs as another one."""
        behind = self._layers_of(1, first.array, first.value.number)
        return [(first, second) for second in behind if second.array.shape == plain.array.shape]

    def fit_inputs(self, axes: int, x: Array, position: int, plus: Array | None) -> Iterator[tuple[LayerFit, bool]]:
        """Layers over the last `axes` axes of `x` that are sums of several, each of a part of the last axis.

        Each comes with whether the trace has it without `plus`.
        """
        of_outputs = [widths for widths in self._widths if axes == 1 and sum(widths) == x.shape[-1]]
        for widths in dict.fromkeys([*of_outputs, *self._widths_of_operands(axes, x, position)]):
            ends = np.cumsum(widths)[:-1].tolist()
            parts = self.parameters.cached(("parts", widths), functools.partial(np.split, x, ends, -1), x)
            found = [next(iter(self.parameters.fit_linear(axes, part, position)), None) for part in parts]
            fits = [fit for fit in found if fit is not None and _is_plain(fit)]
            if len(fits) < len(parts) or len({fit.array.shape for fit in fits}) > 1:
                continue
            kernel = _joined([fit.weight for fit in fits], functools.partial(np.concatenate, axis=axes - 1))
            core = _sum([fit.array for fit in fits])
            biases = _joined([fit.bias for fit in fits], _sum)
            for more in (plus, None) if plus is not None and plus.shape == core.shape else (None,):
                for value, bias in self._biases_of(core if more is None else core + more, biases, position):
                    array = core
                    if bias is not biases and isinstance(bias, AssignedOperand):
                        array = core + bias.operand.array.reshape(-1)
                    yield LayerFit(array, value, kernel, bias), more is None

    def _widths_of_operands(self, axes: int, x: Array, position: int) -> Iterator[tuple[int, ...]]:
        """The parts of the last axis of `x` that the kernels used next would take, if they were one over all of it."""
        *inner, length = x.shape[x.ndim - axes :]
        columns = math.prod(inner)
        named = (operand for operand in self.parameters.operands_by_use(position) if operand.name is not None)
        kernels = itertools.islice((o.size for o in named if len([n for n in o.array.shape if n > 1]) > 1), MOST_PARTS)
        sizes: tuple[int, ...] = ()
        for size in kernels:
            sizes += (size,)
            outputs, rest = divmod(sum(sizes), columns * length)
            if len(sizes) > 1 and not rest and outputs and all(size % (columns * outputs) == 0 for size in sizes):
                yield tuple(size // (columns * outputs) for size in sizes)

    def _biases_of(
        self, total: Array, biases: KnownAssignment, position: int
    ) -> Iterator[tuple[Value, KnownAssignment]]:
        """The value that a sum of layers is: where none of them has a bias, with one behind it, else as it is."""
        if isinstance(biases, AbsentParameter):
            found = self.parameters.fit_biases(total.reshape(-1, total.shape[-1]))
            yield from (pair for pair in found if isinstance(pair[1], AssignedOperand))
        if (value := self.parameters.find_value(total, position)) is not None:
            yield value, biases

    def _layers_of(self, axes: int, x: Array, position: int) -> list[LayerFit]:
        """A layer of each kernel over `x`, in the order of their uses."""
        return self.parameters.cached(("joined", axes), lambda: list(self._find_layers(axes, x, position)), x)

    def _find_layers(self, axes: int, x: Array, position: int) -> Iterator[LayerFit]:
        width = math.prod(x.shape[x.ndim - axes :])
        missed = 0
        for operand in self.parameters.operands_by_use(position):
            if operand.name is None or operand.size % width:
                continue
            later = [fit for fit in self.parameters.fit_kernel(axes, x, operand) if fit.value.number > position]
            missed = 0 if later else missed + 1
            yield from sorted(later, key=lambda fit: (not fit.has_bias, fit.value.number))[:1]
            if missed > GAP:
                return


def _joined(assignments: Sequence[KnownAssignment], join: Callable[[list[Array]], Array]) -> KnownAssignment:
    """What several operands hold of one parameter; where none holds any, it is absent. What is absent is zero."""

    def make(*arrays: Array) -> Array:
        held = iter(arrays)
        return join([_in_order(assigned, held) for assigned in assignments])

    operands = [assigned.operand for assigned in assignments if isinstance(assigned, AssignedOperand)]
    sizes = make(*(operand.array for operand in operands)).shape
    if not operands:
        return AbsentParameter(sizes)
    return AssignedOperand(DerivedOperand.of(operands, make), sizes, tuple(range(len(sizes))))


def _in_order(assigned: KnownAssignment, held: Iterator[Array]) -> Array:
    if isinstance(assigned, AssignedOperand):
        return reorder_axes(next(held), assigned.sizes, assigned.order)
    return np.zeros(assigned.sizes)


def _sum(arrays: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, arrays)


def _mean(arrays: Sequence[Array]) -> Array:
    return _sum(arrays) / len(arrays)


def _is_plain(fit: LayerFit) -> bool:
    """Whether the kernel of a layer is in the trace."""
    return isinstance(fit.weight, AssignedOperand) and not isinstance(fit.weight.operand, DerivedOperand)
