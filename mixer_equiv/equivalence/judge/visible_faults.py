"""`visible`: the faults that the weights and images of a comparison could have shown, planted one at a time.

The tables are those that diagnosis searches. Each fault is planted in the NumPy reference, in the last
place where it can be, and followed to the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.faults.catalogue import fault_of
from mixer_equiv.equivalence.match.step_variants import OUTPUTS, SKIPPABLE, Variant, layer_norm_variants, variants
from mixer_equiv.equivalence.mixer.official_program import program_of
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.operations import Array, Step

Arrays = Mapping[str, Array]


def visible(config: MixerConfig, params: Arrays, images: np.ndarray) -> dict[str, float]:
    """Tell how far each known fault moves the output, relative in the 2-norm, by its name.

    `params` are canonical; `images` are (batch, height, width, channels).
    """
    steps = program_of(config).steps
    weights = {name: np.asarray(array, np.float64) for name, array in params.items()}
    found: dict[str, float] = {}
    with np.errstate(all="ignore"):
        values = [np.asarray(images, np.float64)]
        for step in steps:
            values.append(_run(step, values, weights))
        for place, fault, planted in _planted(steps, values, weights):
            changed = planted()
            if changed.shape == values[place].shape:  # any weights show another shape
                found[fault] = residual(_continued(steps, values, weights, place, changed), values[-1])
    return found


def _run(step: Step, values: Sequence[Array], weights: Arrays) -> Array:
    return step.run(tuple(values[i] for i in step.inputs), tuple(weights[p.name] for p in step.parameters))


def _continued(steps: Sequence[Step], values: list[Array], weights: Arrays, place: int, changed: Array) -> Array:
    """Run the rest of the program with the value at `place` replaced, and return the output."""
    replayed = [*values[:place], changed]
    for step in steps[place:]:
        replayed.append(_run(step, replayed, weights))
    return replayed[-1]


def _planted(
    steps: Sequence[Step], values: Sequence[Array], weights: Arrays
) -> Iterator[tuple[int, str, Callable[[], Array]]]:
    """Yield each fault: the place of the value that it changes, the fault in words, and the changed value."""
    last = {step.operation: number for number, step in enumerate(steps)}
    for operation, number in last.items():
        step = steps[number]
        inputs = tuple(values[i] for i in step.inputs)
        earlier = [(done, value) for done, value in zip(steps[:number], values[1:], strict=False)]
        tried = list(variants(step, inputs, earlier))
        if operation == "layer_norm":
            tried += _norms(step, inputs[0], tuple(weights[p.name] for p in step.parameters))
        if operation in SKIPPABLE:
            deviation = Deviation(step.name, "skip", operation, None, None)
            yield number + 1, f"{fault_of(deviation).id}: none", partial(np.asarray, inputs[-1])
        for change, value, _ in tried:
            deviation = Deviation(step.name, "variant", *change)
            if change.what != "residual" or fault_of(deviation).id != change.what:
                yield number + 1, f"{fault_of(deviation).id}: {change.found}", value
    for name, function in OUTPUTS.items():
        yield len(steps), f"output: {name}", partial(function, values[-1])


def _norms(step: Step, x: Array, parameters: tuple[Array, ...]) -> Iterator[Variant]:
    (eps,) = step.settings
    for changes, function in layer_norm_variants(eps, ()):
        if len(changes) == 1:
            yield Variant(changes[0], partial(_affine, function, x, *parameters))


def _affine(function: Callable[[Array], Array], x: Array, scale: Array, bias: Array) -> Array:
    return function(x) * scale + bias
