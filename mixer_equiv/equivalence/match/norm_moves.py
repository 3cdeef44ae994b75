"""`NormMoves`: the ways in which a trace may take a LayerNorm of a program.

This module knows the operations of `mixer_equiv.operations` and no model. Start at `NormMoves.moves`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import partial

from mixer_equiv import operations
from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.match.batch_norm import batch_norms
from mixer_equiv.equivalence.match.parameter_search import ParameterSearch, UnknownParameter, operand_names
from mixer_equiv.equivalence.match.search_state import COST_OF, Move, SearchState
from mixer_equiv.equivalence.match.step_variants import layer_norm_variants
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.operations import Array, Step

# How many parameters an unknown step may use.
PARAMETERS_AT_MOST = 6


class NormMoves:
    """Generates them for one trace."""

    def __init__(self, trace: Trace, parameters: ParameterSearch) -> None:
        self.trace, self.parameters = trace, parameters

    def moves(self, step: Step, x: Array, state: SearchState) -> Iterator[Move]:
        """The LayerNorm of `x` that the step is, then other normalisations."""
        return itertools.chain(self.as_specified(step, x, state), self.variants(step, x, state))

    def as_specified(self, step: Step, x: Array, state: SearchState) -> Iterator[Move]:
        """The LayerNorm of `x` that the step is."""
        (eps,) = step.settings
        normed = self.parameters.cached(("norm", eps), partial(operations.normalise, x, eps), x)
        yield from self._scaled(step, normed, state, ())

    def variants(self, step: Step, x: Array, state: SearchState) -> Iterator[Move]:
        """Other normalisations of `x` than the LayerNorm that the step is."""
        (eps,) = step.settings
        for changes, norm in layer_norm_variants(eps, self.trace.scalars):
            deviations = tuple(Deviation(step.name, "variant", *change) for change in changes)
            normed = self.parameters.cached(("norm", changes), partial(norm, x), x)
            yield from self._scaled(step, normed, state, deviations)
        unknown = {parameter.name: UnknownParameter() for parameter in step.parameters}
        origin = self.parameters.find_value(x, state.position)
        after, last = (origin.number if origin else state.position), reach(state.position, self.trace)
        for array, value, names in batch_norms(x, after, last, self.trace):
            change = Deviation(step.name, "variant", "batch_norm", Choice.LAYER_NORM, Choice.BATCH_NORM, names)
            yield Move(array, value, unknown, (change,), COST_OF["variant"])

    def _scaled(
        self, step: Step, normed: Array, state: SearchState, deviations: tuple[Deviation, ...]
    ) -> Iterator[Move]:
        """`normed` times a scale plus a bias of the trace, over its last axis or all axes but the first.

        What is normalised over another axis may be scaled along that one. Where the program goes on from the input too
        and the trace from the result alone, it may have normalised the stream itself, so that the step after must
        confirm it; where it goes on to more than a branch, it has, which at first costs as much as a further LayerNorm.
        """
        cost = COST_OF["variant"] if deviations else 0
        whole = self.parameters.cached("whole", lambda: normed.reshape(len(normed), -1), normed)
        names = [parameter.name for parameter in step.parameters]
        later = state.program.steps[len(state.steps) + 1 :] if state.program is not None else ()
        goes_on = any(step.inputs[0] in other.inputs for other in later)
        is_known = any(deviation.found is Choice.NORMALISED_STREAM for deviation in state.deviations)
        for x in (normed, whole) if normed.ndim > 2 else (normed,):
            sizes = x.shape[-1:] if x is normed else normed.shape[1:]
            for fit in self.parameters.fit_affine(x, state.position):
                held = [dataclasses.replace(assignment, sizes=sizes) for assignment in (fit.weight, fit.bias)]
                array = fit.array.reshape(normed.shape)
                is_alone = goes_on and fit.value.number in self.trace.bottlenecks
                is_stream = is_alone and len(self.trace.users[fit.value.number]) > 1
                ahead = COST_OF["insert"] if is_stream and not is_known else 0
                yield Move(
                    array, fit.value, dict(zip(names, held, strict=True)), deviations, cost + ahead, not is_alone
                )
        if any(deviation.found is Choice.TOKENS for deviation in deviations) and normed.ndim > 2:
            swapped = self.parameters.cached("swapped", partial(operations.swap, normed), normed)
            for fit in self.parameters.fit_affine(swapped, state.position):
                unknown = dict.fromkeys(names, UnknownParameter())
                along = dataclasses.replace(deviations[0], parameters=operand_names(fit.weight, fit.bias))
                yield Move(operations.swap(fit.array), fit.value, unknown, (along, *deviations[1:]), cost)


def reach(position: int, trace: Trace) -> int:
    """The number of the last value that an unknown step can give, with few parameters of its own."""
    ahead = sorted(number for numbers in trace.uses.values() for number in numbers if number > position)
    return ahead[PARAMETERS_AT_MOST] if len(ahead) > PARAMETERS_AT_MOST else len(trace.values)
