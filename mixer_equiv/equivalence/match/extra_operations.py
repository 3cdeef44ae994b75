"""`ExtraOperations`: the operations that a trace has and a program lacks.

This module knows the operations of `mixer_equiv.operations` and no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from mixer_equiv import operations
from mixer_equiv.equivalence.deviation import Choice, Epsilon, Setting
from mixer_equiv.equivalence.match.parameter_search import KnownAssignment, ParameterSearch, operand_names
from mixer_equiv.equivalence.match.search_state import Insertion
from mixer_equiv.equivalence.match.step_variants import (
    MLP_ACTIVATIONS,
    OUTPUTS,
    arithmetic,
    candidate_epsilons,
    clipped,
)
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array, Step


class ExtraOperation(NamedTuple):
    """An operation of the trace that the program lacks, and its result."""

    array: Array
    value: Value
    what: str
    setting: Setting
    assignments: tuple[KnownAssignment, ...] = ()

    def deviation(self, step: Step) -> Insertion:
        """The deviation, placed at the `step` that takes the result, or at the last step."""
        expected = Choice.TRANSPOSED if self.what == "reshape" else None
        names = operand_names(*self.assignments)
        # A reshape has no value of its own in a trace.
        place = None if self.what == "reshape" else self.value.place
        return Insertion(step.name, "insert", self.what, expected, self.setting, names, self.assignments, place=place)


class ExtraOperations:
    """Finds them in one trace."""

    def __init__(self, trace: Trace, parameters: ParameterSearch) -> None:
        self.trace, self.parameters = trace, parameters

    def on(self, x: Array, position: int) -> Iterator[ExtraOperation]:
        """Extra operations on `x` whose result the trace has."""
        yield from self._extra_layers(x, position)
        for what, functions in (("activation", MLP_ACTIVATIONS), ("output", OUTPUTS)):
            for name, function in functions.items():
                array = self.parameters.cached(("inserted", name), partial(function, x), x)
                if value := self.parameters.find_value(array, position):
                    yield ExtraOperation(array, value, what, name)
        for setting, array in arithmetic(x, self.trace.scalars):
            if value := self.parameters.find_new(array, position):
                yield ExtraOperation(array, value, "constant", setting)
        for bounds, array in clipped(x, self.trace.scalars):
            if value := self.parameters.find_new(array, position):
                yield ExtraOperation(array, value, "limit", bounds)
        for fit in self.parameters.fit_linear(1, x, position):
            yield ExtraOperation(fit.array, fit.value, "linear", Choice.LAYER, (fit.weight, fit.bias))

    def _extra_layers(self, x: Array, position: int) -> Iterator[ExtraOperation]:
        """LayerNorms, scales, biases and embeddings."""
        for eps in candidate_epsilons(self.trace.scalars):
            normed = self.parameters.cached(("norm", eps), partial(operations.normalise, x, eps), x)
            for fit in self.parameters.fit_affine(normed, position):
                yield ExtraOperation(fit.array, fit.value, "layer_norm", Epsilon(eps), (fit.weight, fit.bias))
        for fit in self.parameters.fit_affine(x, position):
            assignments = fit.weight, fit.bias
            if fit.num_operands == 2:
                yield ExtraOperation(fit.array, fit.value, "affine", Choice.SCALE_AND_BIAS, assignments)
            elif fit.num_operands == 1:
                what = "bias" if fit.has_bias else "scale"
                yield ExtraOperation(fit.array, fit.value, what, Choice.PARAMETER, assignments)
        for array, value, embedding in self.parameters.fit_embedding(x, position) if x.ndim > 2 else ():
            yield ExtraOperation(array, value, "embedding", Choice.PARAMETER, (embedding,))
