"""`replay`: the official program with the settings that a model was found to have, as a function to hold it against.

It takes the deviations that are a setting of a step. A model that deviates in another way is no official Mixer under
any conventions, and has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import numpy as np

from mixer_equiv.activations import ACTIVATIONS, RoundedActivation
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.step_variants import MLP_ACTIVATIONS
from mixer_equiv.equivalence.mixer.official_program import program_of, with_official_conventions
from mixer_equiv.operations import Array, Program, Step

Weights = Mapping[str, Array]

# From canonical weights and images (batch, height, width, channels) to outputs (batch, classes).
Function = Callable[[Weights, Array], Array]


def replay(config: MixerConfig, deviations: Collection[Deviation]) -> Function | None:
    """The official function for `config` with these deviations; None where one is more than a setting of a step."""
    by_step = {deviation.step: deviation for deviation in deviations}
    steps = program_of(with_official_conventions(config)).steps
    if not _are_of_one_step_each(deviations, steps):
        return None
    runs: list[tuple[Step, Run]] = []
    for step in steps:
        run = _run_with(step, by_step.get(step.name))
        if run is None:
            return None
        runs.append((step, run))
    return lambda weights, images: np.concatenate([_run_one(runs, weights, image[None]) for image in images])


def _are_of_one_step_each(deviations: Collection[Deviation], steps: Collection[Step]) -> bool:
    """Whether each deviation is of a step of its own, and none of something else, such as the order of steps."""
    changed = [deviation.step for deviation in deviations]
    return len(set(changed)) == len(changed) and {step.name for step in steps}.issuperset(changed)


Run = Callable[[tuple[Array, ...], tuple[Array, ...]], Array]


def _run_with(step: Step, deviation: Deviation | None) -> Run | None:
    """How the step is run with a deviation; None where that is not known."""
    if (changed := _with_setting(step, deviation)) is not None:
        return changed.run
    if deviation is None:
        return None
    if deviation.kind == "variant" and deviation.found in MLP_ACTIVATIONS and step.operation == "activate":
        function = MLP_ACTIVATIONS[str(deviation.found)]
        return lambda inputs, parameters: function(inputs[0])
    if (deviation.kind, step.operation) == ("skip", "activate"):
        return lambda inputs, parameters: inputs[0]
    return None


def program_with(config: MixerConfig, deviations: Collection[Deviation]) -> Program | None:
    """The official program for `config` with these deviations; None where one is more than a setting that it can have.

    It has derivatives, as `replay` has not.
    """
    by_step = {deviation.step: deviation for deviation in deviations}
    official = program_of(with_official_conventions(config))
    steps = [_with_setting(step, by_step.get(step.name)) for step in official.steps]
    held = tuple(step for step in steps if step is not None)
    is_whole = len(held) == len(steps) and _are_of_one_step_each(deviations, official.steps)
    return Program(held, official.stages) if is_whole else None


def _with_setting(step: Step, deviation: Deviation | None) -> Step | None:
    """The step with the setting that a deviation has found; None where it is more than that."""
    if deviation is None:
        return step
    is_activation = deviation.found in ACTIVATIONS or isinstance(deviation.found, RoundedActivation)
    is_setting = deviation.what == "layer_norm_eps" or (deviation.what == "activation" and is_activation)
    if deviation.kind == "variant" and is_setting:
        return dataclasses.replace(step, settings=(deviation.found,))
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
