"""The models of this package as sides: Flax linen, Flax nnx, PyTorch and the NumPy reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.mixer.official_program import deviations_of
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.sides.base import MixerSide
from mixer_equiv.equivalence.sides.runners import RUNNERS, Arrays, Stages, gradients_of, run_module
from mixer_equiv.layouts import LINEN, NNX, TORCH, Constraint, Layout

LAYOUT_OF = {"flax": LINEN, "nnx": NNX, "torch": TORCH, "reference": LINEN}


class RunByUs:
    """The common part of models of ours and checkpoints: they are run by `RUNNERS`, and nothing is searched for.

    A class that takes it in is a `MixerSide`, with a name, a runner, a config and a layout.
    """

    is_foreign = False
    is_named = True
    constraints: tuple[Constraint, ...] = ()
    notices: tuple[Notice, ...] = ()
    replay_residual: float | None = None

    config: MixerConfig

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        return tuple(deviations_of(self.config))

    @property
    def all_deviations(self) -> tuple[Deviation, ...]:
        return self.deviations

    def run(self: MixerSide, weights: Arrays, images: np.ndarray, dtype: Any) -> Stages:
        return RUNNERS[self.runner](self.config, weights, images.astype(dtype))

    def gradients(self: MixerSide, weights: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
        canonical = gradients_of(self.runner, self.config, weights, images, cotangent)
        return relabel(canonical, LINEN, self.layout, self.config)


@dataclasses.dataclass(frozen=True)
class BuiltInSide(RunByUs):
    """A model of ours, of any sizes and conventions.

    `runner` is its key in `RUNNERS`. Where the caller gave a torch module, that `module` is run, hooks and changes
    included, and not one made of the config.
    """

    name: str
    runner: str
    config: MixerConfig
    own_weights: Checkpoint | None = None
    module: Any = None

    @property
    def layout(self) -> Layout:
        return LAYOUT_OF[self.runner]

    def run(self, weights: Arrays, images: np.ndarray, dtype: Any) -> Stages:
        if self.module is None:
            return super().run(weights, images, dtype)
        return run_module(self.module, self.config, weights, images.astype(dtype))

    def following(self, config: MixerConfig) -> BuiltInSide:
        return BuiltInSide(self.name, self.runner, config)
