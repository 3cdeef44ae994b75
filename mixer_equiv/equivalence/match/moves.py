"""The ways in which a trace may take a step of a program: as it is said, or otherwise."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property, partial

from mixer_equiv import operations
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.axes import arrange_like, axis_permutations
from mixer_equiv.equivalence.match.parameters import Assignment, LayerFit, ParameterSearch
from mixer_equiv.equivalence.match.variants import OUTPUTS, SKIPPED, constants, epsilons, norms, variants
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.operations import ACTIVATIONS, Array, Program, Step

COST_OF = {"variant": 1, "skip": 1, "insert": 2, "unknown": 3}

# How many values of the trace are tried in the place of a step that is not known.
CONTINUED_AT_MOST = 12

# How many parameters may be used in such a step.
PARAMETERS_AT_MOST = 6


@dataclasses.dataclass(frozen=True)
class Insertion(Deviation):
    """A deviation by one more operation; `assignments` are the parameters of the trace that it takes."""

    assignments: tuple[Assignment, ...] = dataclasses.field(default=(), compare=False, repr=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Move:
    """One way to take a step: the value it gives, which value of the trace that is, and what it costs.

    One that is `sure` rests on a value of the trace that could not be there by chance. `replaced`
    are earlier values, by their places, to which something was done first.
    """

    array: Array
    seen: Value | None = None
    assignments: Mapping[str, Assignment] = dataclasses.field(default_factory=dict)
    deviations: tuple[Deviation, ...] = ()
    cost: int = 0
    sure: bool = True
    replaced: Mapping[int, tuple[Array, Value]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """How far a replay has come."""

    steps: tuple[Step, ...]
    values: tuple[Array, ...]
    seen: tuple[Value | None, ...]
    assignments: Mapping[str, Assignment]
    deviations: tuple[Deviation, ...]
    before: Mapping[int, tuple[Array, Value | None]] = dataclasses.field(default_factory=dict)

    def after(self, step: Step, move: Move) -> Replay:
        pairs = zip(self.values, self.seen, strict=True)
        held = [move.replaced.get(place, pair) for place, pair in enumerate(pairs)]
        changed = {place: (self.values[place], self.seen[place]) for place in move.replaced}
        return Replay(
            (*self.steps, step),
            (*(array for array, _ in held), move.array),
            (*(seen for _, seen in held), move.seen),
            {**self.assignments, **move.assignments},
            (*self.deviations, *move.deviations),
            {**changed, **self.before},
        )

    @cached_property
    def position(self) -> int:
        """The number of the last value of the trace that was found."""
        return max((value.number for value in self.seen if value is not None), default=0)


class MoveGenerator:
    """Answers for one trace and the programs that it may be."""

    def __init__(self, trace: Trace, programs: tuple[Program, ...]) -> None:
        self.trace, self.programs = trace, programs
        self.fits = ParameterSearch(trace)

    def moves(self, step: Step, replay: Replay, budget: int) -> Iterator[Move]:
        inputs = tuple(replay.values[place] for place in step.inputs)
        yield from self._as_said(step, inputs, replay)
        if budget >= COST_OF["variant"]:
            yield from self._variants(step, inputs, replay)
        nothing = {parameter.name: Assignment(None, is_known=False) for parameter in step.parameters}
        if budget >= COST_OF["skip"] and step.operation in SKIPPED:
            deviation = Deviation(step.name, "skip", step.operation, SKIPPED[step.operation], "none")
            seen = replay.seen[step.inputs[-1]]
            yield Move(inputs[-1], seen, nothing, (deviation,), COST_OF["skip"], sure=False)
        if budget >= COST_OF["insert"] and step.operation != "cut":
            yield from self._after_insertion(step, inputs, replay)
        if budget >= COST_OF["unknown"]:
            for array, value in self._continued(step, inputs, replay):
                expected, found = f"that of {step.operation}", f"another value, of {value.operation}"
                deviation = Deviation(step.name, "unknown", step.operation, expected, found)
                yield Move(array, value, nothing, (deviation,), COST_OF["unknown"], sure=False)

    def _as_said(self, step: Step, inputs: tuple[Array, ...], replay: Replay) -> Iterator[Move]:
        """The step as the program has it."""
        x = inputs[0]
        names = [parameter.name for parameter in step.parameters]
        if not _are_of_one_shape(inputs):
            return
        if step.operation == "cut":
            yield from (Move(operations.cut(x, patch), sure=False) for patch in self._patches(x.shape))
        elif step.operation == "linear":
            guessed = bool(replay.deviations) and replay.deviations[-1].kind == "unknown"
            axes = len(step.parameters[0].axes) - 1
            found = self.fits.linear(axes, x, replay.position, guessed=guessed)
            alone: list[tuple[LayerFit, Value | None]] = [(fit, fit.value) for fit in found]
            # Where the bias, or all of it, is seen only after the addition to the stream.
            if (
                not any(fit.second.operand is not None for fit in found)
                and (plus := self._added_to(replay)) is not None
            ):
                later = self.fits.linear(axes, x, replay.position, guessed=guessed, plus=plus)
                alone = [(fit, None) for fit in later if fit.second.operand or not found] + alone
            for fit, seen in alone:
                yield Move(fit.array, seen, dict(zip(names, (fit.first, fit.second), strict=True)))
        elif step.operation == "layer_norm":
            (eps,) = step.settings
            normed = self.fits.once(("norm", eps), partial(operations.normalise, x, eps), x)
            yield from self._scaled(step, normed, replay, ())
        else:
            array = self.fits.once((step.operation, step.settings), partial(step.run, inputs, ()), *inputs)
            if step.operation == "swap":
                yield Move(array, replay.seen[step.inputs[0]], sure=False)
            elif value := self.fits.find(array, replay.position):
                yield Move(array, value)

    def _added_to(self, replay: Replay) -> Array | None:
        """What the result of the next step is added to by the program, in the same order of axes."""
        program = next(p for p in self.programs if p.steps[: len(replay.steps)] == replay.steps)
        place = len(replay.values)
        swapped = False
        for step in program.steps[place : place + 2]:
            if step.operation == "swap" and step.inputs == (place,):
                place, swapped = place + 1, True
            elif step.operation == "add" and place in step.inputs:
                other = replay.values[sum(step.inputs) - place]
                return self.fits.once("swapped", partial(operations.swap, other), other) if swapped else other
        return None

    def _variants(self, step: Step, inputs: tuple[Array, ...], replay: Replay) -> Iterator[Move]:
        """Other things that code does where this operation is meant."""
        cost = COST_OF["variant"]
        if not _are_of_one_shape(inputs):
            return
        if step.operation == "layer_norm":
            (eps,) = step.settings
            for changes, norm in norms(eps, self.trace.scalars):
                deviations = tuple(Deviation(step.name, "variant", *change) for change in changes)
                normed = self.fits.once(("norm", changes), partial(norm, inputs[0]), inputs[0])
                yield from self._scaled(step, normed, replay, deviations)
            return
        earlier = list(zip(replay.steps, replay.values[1:], strict=True))
        for what, expected, found, make in variants(step, inputs, earlier):
            array = self.fits.once(("variant", step.operation, what, found), make, *inputs)
            deviation = Deviation(step.name, "variant", what, expected, found)
            if step.operation == "swap":
                yield Move(array, replay.seen[step.inputs[0]], {}, (deviation,), cost, sure=False)
            elif value := self.fits.find(array, replay.position):
                yield Move(array, value, {}, (deviation,), cost)

    def _scaled(self, step: Step, normed: Array, replay: Replay, deviations: tuple[Deviation, ...]) -> Iterator[Move]:
        """The step by a scale and a bias of the trace, over the last axis of `normed` or all axes but the first."""
        cost = COST_OF["variant"] if deviations else 0
        whole = self.fits.once("whole", lambda: normed.reshape(len(normed), -1), normed)
        for x in (normed, whole) if normed.ndim > 2 else (normed,):
            for fit in self.fits.affine(x, replay.position):
                names = (parameter.name for parameter in step.parameters)
                assignments = [
                    dataclasses.replace(assignment, sizes=x.shape[-1:] if x is normed else normed.shape[1:])
                    for assignment in (fit.first, fit.second)
                ]
                array = fit.array.reshape(normed.shape)
                yield Move(array, fit.value, dict(zip(names, assignments, strict=True)), deviations, cost)

    def _after_insertion(self, step: Step, inputs: tuple[Array, ...], replay: Replay) -> Iterator[Move]:
        """The step as the program has it, once one of its inputs was changed by one more operation."""
        for i, x in enumerate(inputs):
            changed = list(self.inserted(x, replay.position))
            if step.operation == "layer_norm" and (seen := replay.seen[step.inputs[i]]) is not None and x.ndim == 3:
                array = self.fits.once("reshaped", partial(_reshaped, x), x)
                changed.append((array, seen, "reshape", "reshaped", ()))
            for array, value, what, found, assignments in changed:
                expected = "transposed" if what == "reshape" else None
                deviation = Insertion(step.name, "insert", what, expected, found, names_of(*assignments), assignments)
                replaced = {step.inputs[i]: (array, value)}
                for move in self._as_said(step, (*inputs[:i], array, *inputs[i + 1 :]), replay):
                    if move.sure:
                        both = (deviation, *move.deviations)
                        cost = move.cost + COST_OF["insert"]
                        yield dataclasses.replace(move, deviations=both, cost=cost, replaced=replaced)

    def inserted(self, x: Array, position: int) -> Iterator[tuple[Array, Value, str, str, tuple[Assignment, ...]]]:
        """Values of the trace that are made of `x` by one more operation: with what it is, and of what."""
        for eps in epsilons(self.trace.scalars):
            normed = self.fits.once(("norm", eps), partial(operations.normalise, x, eps), x)
            for fit in self.fits.affine(normed, position):
                yield fit.array, fit.value, "layer_norm", f"eps {eps:g}", (fit.first, fit.second)
        for fit in self.fits.affine(x, position):
            assignments = fit.first, fit.second
            if fit.first.operand and fit.second.operand:
                yield fit.array, fit.value, "affine", "a scale and a bias", assignments
            elif names_of(*assignments):
                yield fit.array, fit.value, "scale" if fit.first.operand else "bias", "a parameter", assignments
        for array, value, operand in self.fits.added(x, position) if x.ndim > 2 else ():
            yield array, value, "embedding", "a parameter", (Assignment(operand),)
        for name, function in {**ACTIVATIONS, **OUTPUTS}.items():
            array = self.fits.once(("inserted", name), partial(function, x), x)
            if found := self.fits.find(array, position):
                yield array, found, "activation" if name in ACTIVATIONS else "output", name, ()
        for text, array in constants(x, self.trace.scalars):
            if found := self.fits.find(array, position):
                yield array, found, "constant", text, ()
        for fit in self.fits.linear(1, x, position):
            yield fit.array, fit.value, "linear", "a layer", (fit.first, fit.second)

    def _continued(self, step: Step, inputs: tuple[Array, ...], replay: Replay) -> Iterator[tuple[Array, Value]]:
        """Values of the trace that may stand where the step's result should, soonest first."""
        x = inputs[0]
        shapes = {"mean": (x.shape[0], *x.shape[2:]), "swap": (*x.shape[:-2], x.shape[-1], x.shape[-2])}
        shape = shapes.get(step.operation, x.shape)
        if step.operation in ("cut", "linear"):
            return
        known = [(seen, array) for seen, array in zip(replay.seen, replay.values, strict=True) if seen is not None]
        last = self._reach(replay.position)
        values = (v for v in self.trace.by_size.get(math.prod(shape), ()) if replay.position < v.number <= last)
        new = (value for value in values if not any(seen.fingerprint.matches(value.fingerprint) for seen, _ in known))
        for value in itertools.islice(new, CONTINUED_AT_MOST):
            alike = [pair for pair in known if pair[1].shape == shape and pair[0].array.shape == value.array.shape]
            if alike:
                seen, array = alike[-1]
                yield arrange_like(value.array, seen.array, array), value
            else:
                yield from ((array, value) for array in axis_permutations(value.array, shape))

    def _reach(self, position: int) -> int:
        """How far a step that is not known may lead: past few parameters of its own."""
        ahead = sorted(number for numbers in self.trace.uses.values() for number in numbers if number > position)
        return ahead[PARAMETERS_AT_MOST] if len(ahead) > PARAMETERS_AT_MOST else len(self.trace.values)

    def _patches(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Sizes of patches that divide the image and for which there is a kernel and a result, the squarest first."""
        batch, height, width, channels = shape
        lengths = {operand.size for operand in self.trace.operands}
        patches = []
        for ph, pw in itertools.product(_divisors(height), _divisors(width)):
            tokens, columns = (height // ph) * (width // pw), ph * pw * channels
            hidden = {size // columns for size in lengths if size % columns == 0}
            if any(batch * tokens * h in self.trace.by_size for h in hidden):
                patches.append((ph, pw))
        return sorted(patches, key=lambda patch: (patch[0] != patch[1], patch))


def names_of(*assignments: Assignment) -> tuple[str, ...]:
    operands = [assignment.operand for assignment in assignments]
    return tuple(name for operand in operands if operand is not None for name in sorted(operand.leaves))


def _reshaped(x: Array) -> Array:
    """(batch, tokens, channels) whose memory, as (batch, channels, tokens), is read as if it were in this order."""
    return operations.swap(x).reshape(x.shape)


def _are_of_one_shape(arrays: tuple[Array, ...]) -> bool:
    """Not so, where a branch ends in a layer of another width."""
    return len({array.shape for array in arrays}) == 1


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
