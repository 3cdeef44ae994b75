"""`ReplayedSide`: the official program with the settings that another side was found to have, as a side."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.mixer.replay import program_with
from mixer_equiv.equivalence.sides.base import MixerSide
from mixer_equiv.equivalence.sides.built_in import BuiltInSide, RunByUs
from mixer_equiv.equivalence.sides.runners import Arrays, Stages
from mixer_equiv.layouts import LINEN
from mixer_equiv.operations import Program


@dataclasses.dataclass(frozen=True)
class ReplayedSide(RunByUs):
    """A program in NumPy float64 of the sizes of `config`, whose steps have settings that no config can say."""

    name: str
    config: MixerConfig
    program: Program
    own_weights: Checkpoint | None = None

    runner = "reference"
    layout = LINEN

    @classmethod
    def of(cls, side: MixerSide) -> ReplayedSide | None:
        """The official program with all deviations of a side; None where one is more than a setting of a step."""
        program = program_with(side.config, side.all_deviations)
        return None if program is None else cls(side.name, side.config, program)

    def run(self, weights: Arrays, images: np.ndarray, dtype: Any) -> Stages:
        values = [np.asarray(images, np.float64)]
        for step in self.program.steps:
            inputs = tuple(values[place] for place in step.inputs)
            values.append(step.run(inputs, tuple(weights[parameter.name] for parameter in step.parameters)))
        return {name: values[place] for name, place in self.program.stages.items()}

    def gradients(self, weights: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
        return self.program.gradients(weights, np.asarray(images, np.float64), cotangent)

    def following(self, config: MixerConfig) -> BuiltInSide:
        return BuiltInSide(self.name, self.runner, config)
