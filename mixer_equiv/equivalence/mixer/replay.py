"""`replay`: the official program with the settings that a model was found to have, as a function to hold it against.

It takes the deviations that are a setting of a step. A model that deviates in another way is no official Mixer under
any conventions, and has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.step_variants import MLP_ACTIVATIONS
from mixer_equiv.equivalence.mixer.official_program import program_of, with_official_conventions
from mixer_equiv.operations import Array, Step

Weights = Mapping[str, Array]

# From canonical weights and images (batch, height, width, channels) to outputs (batch, classes).
Function = Callable[[Weights, Array], Array]


def replay(config: MixerConfig, deviations: Collection[Deviation]) -> Function | None:
    """The official function for `config` with these deviations; None where one is more than a setting of a step."""
    by_step = {deviation.step: deviation for deviation in deviations}
    runs: list[tuple[Step, Run]] = []
    for step in program_of(with_official_conventions(config)).steps:
        run = _run_with(step, by_step.get(step.name))
        if run is None or len(by_step) < len(deviations):
            return None
        runs.append((step, run))
    return lambda weights, images: np.concatenate([_run_one(runs, weights, image[None]) for image in images])


Run = Callable[[tuple[Array, ...], tuple[Array, ...]], Array]


def _run_with(step: Step, deviation: Deviation | None) -> Run | None:
    """How the step is run with a deviation; None where that is not known."""
    if deviation is None:
        return step.run
    if deviation.kind == "variant" and deviation.found in MLP_ACTIVATIONS and step.operation == "activate":
        function = MLP_ACTIVATIONS[str(deviation.found)]
        return lambda inputs, parameters: function(inputs[0])
    if (deviation.kind, step.operation) == ("skip", "activate"):
        return lambda inputs, parameters: inputs[0]
    if deviation.kind == "variant" and deviation.what == "layer_norm_eps":
        changed = Step(step.name, step.operation, step.inputs, step.parameters, (deviation.found,))
        return changed.run
    return None


def _run_one(steps: Collection[tuple[Step, Run]], weights: Weights, image: Array) -> Array:
    """Run the steps on one image, and keep a value until its last use."""
    last_use = {place: number for number, (step, _) in enumerate(steps) for place in step.inputs}
    values: dict[int, Array] = {0: image}
    with np.errstate(all="ignore"):
        for number, (step, run) in enumerate(steps):
            inputs = tuple(values[place] for place in step.inputs)
            values[number + 1] = run(inputs, tuple(weights[parameter.name] for parameter in step.parameters))
            for place in step.inputs:
                if last_use[place] == number:
                    values.pop(place, None)
    return values[len(steps)]
