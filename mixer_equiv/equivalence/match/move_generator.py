"""`MoveGenerator`: the ways in which a trace may take a step of a program.

A step is taken as the program has it, by a known variant, not at all, after an extra operation, or, at last,
by a value of the trace whose making is not known. This module knows the operations of
`mixer_equiv.operations` and no model. Start at `MoveGenerator.moves`.

A program that is recorded from any model would bring operations of its own: its steps without parameters
would only be run, in `_as_specified`, and need not be seen in the trace.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial

from mixer_equiv import operations
from mixer_equiv.activations import ACTIVATIONS, Activation, activation_function
from mixer_equiv.equivalence.deviation import (
    Choice,
    Deviation,
    OtherValueOf,
    ValueOf,
)
from mixer_equiv.equivalence.match.axes import arrange_like, axis_permutations
from mixer_equiv.equivalence.match.extra_operations import ExtraOperation, ExtraOperations
from mixer_equiv.equivalence.match.joined_layers import JoinedLayers
from mixer_equiv.equivalence.match.norm_moves import NormMoves, reach
from mixer_equiv.equivalence.match.parameter_search import (
    LayerFit,
    ParameterSearch,
    UnknownParameter,
    operand_names,
)
from mixer_equiv.equivalence.match.rounded_activations import distance, rounded_activations
from mixer_equiv.equivalence.match.search_state import COST_OF, Move, SearchState
from mixer_equiv.equivalence.match.step_variants import (
    SKIPPABLE,
    variants,
)
from mixer_equiv.equivalence.match.windows import windows_of
from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE, Fingerprint
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import Array, Step

# How many values of the trace are tried in the place of an unknown step.
CONTINUED_AT_MOST = 12

# How many times as near a value must be with another constant than with the activation's own.
CLEARLY = 0.1


class MoveGenerator:
    """Generates moves for one trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.parameters = ParameterSearch(trace)
        self.joined = JoinedLayers(self.parameters)
        self.extra = ExtraOperations(trace, self.parameters)
        self.norms = NormMoves(trace, self.parameters)
        self.rounded = rounded_activations(trace.scalars)

    def moves(self, step: Step, state: SearchState, budget: int) -> Iterator[Move]:
        """Generate the moves that cost no more than the budget, cheapest kinds first, their deviations with places."""
        for move in self._moves(step, state, budget):
            if any(deviation.place is None for deviation in move.deviations):
                place = self._place_of(move, step, state)
                located = (d if d.place else dataclasses.replace(d, place=place) for d in move.deviations)
                move = dataclasses.replace(move, deviations=tuple(located))
            yield move

    def _place_of(self, move: Move, step: Step, state: SearchState) -> Place | None:
        """The place of the move's value where it is known how that is made, else of the next operation.

        An operation on several values that is left out is missing where the last of them ends. What is known and has no
        value of its own is a view.
        """
        kinds = {deviation.kind for deviation in move.deviations}
        if kinds == {"variant"} and move.seen is not None and move.seen.number > state.position:
            return move.seen.place
        last = state.seen[step.inputs[-1]] or self.trace.values[state.position]
        if kinds == {"skip"} and len(step.inputs) > 1:
            return last.place
        return self.trace.place_after(last, views=kinds.isdisjoint({"skip", "unknown"}))

    def _moves(self, step: Step, state: SearchState, budget: int) -> Iterator[Move]:
        inputs = tuple(state.values[place] for place in step.inputs)
        if step.operation == "add":
            yield from self._norm_after_addition(step, inputs, state)
        yield from self._as_specified(step, inputs, state)
        if budget >= COST_OF["variant"]:
            yield from self._variants(step, inputs, state)
        if budget >= COST_OF["windows"] and step.operation == "cut":
            for windows, array in windows_of(inputs[0], self.trace):
                deviation = Deviation(step.name, "variant", "patches", Choice.SIDE_BY_SIDE, windows)
                yield Move(array, None, {}, (deviation,), COST_OF["windows"], sure=False)
        unknown = {parameter.name: UnknownParameter() for parameter in step.parameters}
        if budget >= COST_OF["skip"]:
            yield from self._left_out(step, inputs, state)
        if budget >= COST_OF["insert"] and step.operation != "cut":
            yield from self._after_insertion(step, inputs, state, budget - COST_OF["insert"])
        if budget >= COST_OF["unknown"]:
            for array, value in self._unexplained(step, inputs, state):
                expected, found = ValueOf(step.operation), OtherValueOf(value.operation)
                deviation = Deviation(step.name, "unknown", step.operation, expected, found)
                yield Move(array, value, unknown, (deviation,), COST_OF["unknown"], sure=False)

    def _as_specified(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[Move]:
        """The step as the program has it."""
        x = inputs[0]
        if not _have_one_shape(inputs):
            return
        if step.operation == "cut":
            yield from (Move(operations.cut(x, patch), sure=False) for patch in self._patch_sizes(x.shape))
        elif step.operation == "linear":
            yield from self._linear(step, x, state)
        elif step.operation == "layer_norm":
            yield from self.norms.as_specified(step, x, state)
        else:
            array = self.parameters.cached((step.operation, step.settings), partial(step.run, inputs, ()), *inputs)
            if step.operation == "swap":
                yield Move(array, state.seen[step.inputs[0]], sure=False)
            elif step.operation == "activate":
                yield from self._activated(step, x, state, step.settings[0])
            elif value := self.parameters.find_value(array, state.position):
                yield Move(array, value)
            elif step.operation == "mean":  # what follows is linear too, and may stand before it or be one with it
                yield Move(array, None, sure=False)

    def _activated(self, step: Step, x: Array, state: SearchState, name: str) -> Iterator[Move]:
        """The activation of this name, with constants of the trace where these give its value more nearly."""
        (expected,) = step.settings
        alike: list[Activation] = [name, *(a for a in self.rounded if a.name == name and a.error <= TOLERANCE)]
        arrays = [self.parameters.cached(("activation", a), partial(activation_function(a), x), x) for a in alike]
        if (value := self.parameters.find_value(arrays[0], state.position)) is None:
            return
        best = 0
        if len(alike) > 1:
            exact = Fingerprint(value.array)
            distances = [distance(exact, Fingerprint(array)) for array in arrays]
            best = min(range(len(alike)), key=lambda i: distances[i] * (1 if i else CLEARLY))
        found = alike[best]
        deviations = () if found == expected else (Deviation(step.name, "variant", "activation", expected, found),)
        yield Move(arrays[best], value, {}, deviations, 0 if name == expected else COST_OF["variant"])

    def _linear(self, step: Step, x: Array, state: SearchState) -> Iterator[Move]:
        guessed = bool(state.deviations) and state.deviations[-1].kind == "unknown"
        axes = len(step.parameters[0].axes) - 1
        alone = self.parameters.fit_linear(axes, x, state.position, guessed=guessed)
        found: list[tuple[LayerFit, Value | None]] = [(fit, fit.value) for fit in alone]
        # The trace may show the bias, or the whole result, only after the addition to the stream.
        if not any(fit.has_bias for fit in alone):
            plus = self._summand(state)
            if plus is not None:
                later = self.parameters.fit_linear(axes, x, state.position, guessed=guessed, plus=plus)
                found = [(fit, None) for fit in later if fit.has_bias or not alone] + found
            if not guessed:
                summed = self.joined.fit_inputs(axes, x, state.position, plus)
                found = [*((fit, fit.value if is_seen else None) for fit, is_seen in summed), *found]
        # Several layers on one array are one layer or branches of their own, which the step after tells.
        several = None if guessed else self.joined.fit_outputs(axes, x, state.position)
        if several is not None:
            means = self.joined.fit_means(axes, x, state.position)
            low_rank = self.joined.fit_low_rank(axes, x, state.position)
            sums = itertools.chain(means, low_rank)
            found = [*((fit, fit.value) for fit in sums), (several, several.value), *found]
        names = [parameter.name for parameter in step.parameters]
        for fit, seen in found:
            yield Move(fit.array, seen, dict(zip(names, (fit.weight, fit.bias), strict=True)), sure=several is None)

    def _summand(self, state: SearchState) -> Array | None:
        """The value to which the program adds the next step's result, in the same order of axes."""
        place = len(state.values)
        swapped = False
        for step in state.program.steps[place : place + 2] if state.program is not None else ():
            if step.operation == "swap" and step.inputs == (place,):
                place, swapped = place + 1, True
            elif step.operation == "add" and place in step.inputs:
                other = state.values[sum(step.inputs) - place]
                return self.parameters.cached("swapped", partial(operations.swap, other), other) if swapped else other
        return None

    def _norm_after_addition(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[Move]:
        """The addition, or none, and of its result the LayerNorm that was left out before the branch.

        To have left that out has cost enough, but where it has no parameters, since any LayerNorm of its result then
        has the result of one alone. What the trace does later must be made of it: else the LayerNorm is the next
        branch's own. Where it is used only once, and not by a LayerNorm, it may be the last of all, so that the step
        after must confirm it.
        """
        norm = next((done for done in reversed(state.steps) if done.operation == "layer_norm"), None)
        skipped = {deviation.step for deviation in state.deviations if deviation.kind == "skip"}
        if norm is None or norm.name not in skipped or not _have_one_shape(inputs):
            return
        moved = Deviation(norm.name, "variant", "post_norm", Choice.BEFORE_BRANCH, Choice.AFTER_ADDITION)
        total = self.parameters.cached((step.operation, step.settings), partial(step.run, inputs, ()), *inputs)
        for added in (Move(total), *self._left_out(step, inputs, state)):
            for move in self.norms.moves(norm, added.array, state):
                if move.seen is not None and move.seen.number in self.trace.bottlenecks:
                    is_stream = len(self.trace.users[move.seen.number]) > 1
                    is_sure = is_stream or any(True for _ in self.norms.moves(norm, move.array, state))
                    is_plain = not operand_names(*move.assignments.values())
                    yield dataclasses.replace(
                        move,
                        deviations=(moved, *added.deviations, *move.deviations),
                        cost=added.cost + (COST_OF["variant"] if is_plain else 0),
                        sure=is_sure,
                    )

    def _left_out(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[Move]:
        if step.operation in SKIPPABLE:
            unknown = {parameter.name: UnknownParameter() for parameter in step.parameters}
            deviation = Deviation(step.name, "skip", step.operation, SKIPPABLE[step.operation], Choice.NONE)
            yield Move(inputs[-1], state.seen[step.inputs[-1]], unknown, (deviation,), COST_OF["skip"], sure=False)

    def _variants(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[Move]:
        """Known variants of the step's operation."""
        cost = COST_OF["variant"]
        if not _have_one_shape(inputs):
            return
        if step.operation == "layer_norm":
            yield from self.norms.variants(step, inputs[0], state)
            return
        earlier = list(zip(state.steps, state.values[1:], strict=True))
        rounded = [activation for activation in self.rounded if activation.error > TOLERANCE]
        for number, (change, compute, is_rearranged) in enumerate(variants(step, inputs, earlier, rounded)):
            if change.found in ACTIVATIONS:
                yield from self._activated(step, inputs[0], state, str(change.found))
                continue
            array = self.parameters.cached(("variant", step.operation, number, change), compute, *inputs)
            deviation = Deviation(step.name, "variant", *change)
            if is_rearranged:
                yield Move(array, state.seen[step.inputs[0]], {}, (deviation,), cost, sure=False)
            elif value := self.parameters.find_value(array, state.position):
                yield Move(array, value, {}, (deviation,), cost)

    def _after_insertion(
        self, step: Step, inputs: tuple[Array, ...], state: SearchState, budget: int
    ) -> Iterator[Move]:
        """The step after an extra operation on one of its inputs, and within budget a variant, nothing or one more."""
        for i, x in enumerate(inputs):
            place = step.inputs[i]
            extras = list(self.extra.on(x, state.position))
            if step.operation == "layer_norm" and (seen := state.seen[place]) is not None and x.ndim == 3:
                array = self.parameters.cached("reshaped", partial(_reshape_as_swapped, x), x)
                extras.append(ExtraOperation(array, seen, "reshape", Choice.RESHAPED))
            for extra in extras:
                changed, after = (*inputs[:i], extra.array, *inputs[i + 1 :]), state.replacing(place, *extra[:2])
                moves = [self._as_specified(step, changed, after)]
                if step.operation == "add":
                    moves.append(self._norm_after_addition(step, changed, after))
                if budget >= COST_OF["variant"]:
                    moves += self._variants(step, changed, after), self._left_out(step, changed, after)
                if budget >= COST_OF["insert"]:
                    moves.append(self._after_insertion(step, changed, after, budget - COST_OF["insert"]))
                for move in itertools.chain(*moves):
                    if move.sure or step.operation == "layer_norm":
                        yield dataclasses.replace(
                            move,
                            deviations=(extra.deviation(step), *move.deviations),
                            cost=move.cost + COST_OF["insert"],
                            replaced={place: (extra.array, extra.value), **move.replaced},
                        )
        if budget >= COST_OF["unknown"] - COST_OF["insert"] and step.parameters:
            yield from self._after_unknown(step, inputs, state)

    def _after_unknown(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[Move]:
        """The step after an operation that is not known has changed its input, whatever else takes that."""
        x, place = inputs[0], step.inputs[0]
        seen = state.seen[place]
        if seen is None or seen.size != x.size:
            return
        made = self.trace.made_of(seen, reach(state.position, self.trace)) & self.trace.bottlenecks
        later = (v for v in self.trace.by_size.get(x.size, ()) if state.position < v.number and v.number in made)
        for value in itertools.islice(later, CONTINUED_AT_MOST):
            if value.array.shape == seen.array.shape:
                array = self.parameters.cached(
                    ("changed", value.number), partial(arrange_like, value.array, seen.array, x), x
                )
                change = Deviation(
                    step.name, "unknown", "stream", None, OtherValueOf(value.operation), place=value.place
                )
                for move in self._as_specified(step, (array,), state.replacing(place, array, value)):
                    if move.sure:
                        replaced = {place: (array, value), **move.replaced}
                        deviations = (change, *move.deviations)
                        yield dataclasses.replace(
                            move, deviations=deviations, cost=COST_OF["unknown"], replaced=replaced
                        )

    def _unexplained(self, step: Step, inputs: tuple[Array, ...], state: SearchState) -> Iterator[tuple[Array, Value]]:
        """Values of the trace that may stand where the step's result should, soonest first."""
        if step.operation in ("cut", "linear"):
            return
        x = inputs[0]
        shapes = {"mean": (x.shape[0], *x.shape[2:]), "swap": (*x.shape[:-2], x.shape[-1], x.shape[-2])}
        shape = shapes.get(step.operation, x.shape)
        known = [(seen, array) for seen, array in zip(state.seen, state.values, strict=True) if seen is not None]
        last = reach(state.position, self.trace)
        values = (v for v in self.trace.by_size.get(math.prod(shape), ()) if state.position < v.number <= last)
        new = (value for value in values if not any(seen.fingerprint.matches(value.fingerprint) for seen, _ in known))
        # A step before a layer with parameters gives what these meet, behind all that it was made of.
        likely = sorted(new, key=lambda value: value.number not in self.trace.meeting_parameters)
        for value in likely[:CONTINUED_AT_MOST]:
            alike = [pair for pair in known if pair[1].shape == shape and pair[0].array.shape == value.array.shape]
            if alike:
                seen, array = alike[-1]
                yield arrange_like(value.array, seen.array, array), value
            else:
                yield from ((array, value) for array in axis_permutations(value.array, shape))

    def _patch_sizes(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Sizes of patches that divide the image and for which there is a kernel and a result, the squarest first."""
        batch, height, width, channels = shape
        lengths = {operand.size for operand in self.trace.operands}
        patches = []
        for ph, pw in itertools.product(_divisors(height), _divisors(width)):
            tokens, columns = (height // ph) * (width // pw), ph * pw * channels
            with_ones = batch * tokens * (columns + 1) in self.parameters.sizes_with_ones
            # A kernel may hold the bias too, or be of one channel.
            rows = {columns, columns // channels, *([columns + 1] if with_ones else [])}
            hidden = {size // r for r in rows for size in lengths if size % r == 0}
            if any(batch * tokens * h in self.trace.by_size for h in hidden):
                patches.append((ph, pw))
        return sorted(patches, key=lambda patch: (patch[0] != patch[1], patch))


def _reshape_as_swapped(x: Array) -> Array:
    """(batch, tokens, channels) whose memory, as (batch, channels, tokens), is read as if it were in this order."""
    return operations.swap(x).reshape(x.shape)


def _have_one_shape(arrays: tuple[Array, ...]) -> bool:
    """Whether arrays can be added: they cannot where a branch ends in a layer of another width."""
    return len({array.shape for array in arrays}) == 1


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
