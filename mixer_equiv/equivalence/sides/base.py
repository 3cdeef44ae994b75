"""The protocol of a side, one of the two that are compared, and the classes that go with it.

A side is a `MixerSide`, which one of three classes is: a model of ours (`built_in.py`), a checkpoint
(`stored.py`) or somebody else's model in which a Mixer was found (`foreign.py`). A model in which none was
found is `NotAMixer`. A search for a correspondence of any two models would end in a further kind of side:
it runs, and has neither a config nor a layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.mixer.result import NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.sides.runners import RUNNERS, Arrays, Stages
from mixer_equiv.layouts import LINEN, Constraint, Layout

Image = tuple[int, int, int]

# All sizes differ and there are more blocks than digits, so that no two axes or blocks can be confused.
DEFAULT_CONFIG = MixerConfig(
    num_classes=7,
    num_blocks=12,
    patch_size=(2, 3),
    image_size=(8, 9),
    in_channels=3,
    hidden_dim=20,
    tokens_mlp_dim=11,
    channels_mlp_dim=26,
)


class MixerSide(Protocol):
    """A Mixer that can be run on weights under canonical names."""

    @property
    def name(self) -> str:
        """The name to show."""

    @property
    def runner(self) -> str:
        """The key in `RUNNERS` of the model of this package that runs it, or that is of its framework."""

    @property
    def config(self) -> MixerConfig: ...

    @property
    def layout(self) -> Layout:
        """The layout that names its parameters."""

    @property
    def own_weights(self) -> Checkpoint | None:
        """The weights that it holds itself, if any."""

    @property
    def is_foreign(self) -> bool:
        """Whether it is somebody else's model, whose mapping and deviations were found by running it."""

    @property
    def is_named(self) -> bool:
        """Whether each official parameter is a parameter of its own, and not computed from several."""

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """The steps at which it computes something else than the official model."""

    @property
    def all_deviations(self) -> tuple[Deviation, ...]:
        """The same, with the steps whose constants differ in their last digits alone, where these are known."""

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """Conditions on official weights without which it cannot hold them."""

    @property
    def notices(self) -> tuple[Notice, ...]:
        """Notices for the user of how it was run."""

    @property
    def replay_residual(self) -> float | None:
        """The residual of its output against the official program with its deviations; None where none was replayed."""

    def run(self, weights: Arrays, images: np.ndarray, dtype: Any) -> Stages:
        """The stages for `images` (batch, height, width, channels), computed in `dtype`."""

    def gradients(self, weights: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
        """Gradients of the sum of the outputs times `cotangent`, in the dtype of `images`, by the names of `layout`."""

    def following(self, config: MixerConfig) -> MixerSide:
        """A model of ours in its place, with the sizes and conventions of `config`."""


@dataclasses.dataclass(frozen=True)
class NotAMixer:
    """Somebody else's model in which no Mixer was found, and why."""

    name: str
    found: NothingFound

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self.found.notices


@dataclasses.dataclass(frozen=True)
class WeightedSide:
    """A side with the weights that it is run on."""

    side: MixerSide
    checkpoint: Checkpoint

    @property
    def name(self) -> str:
        return self.side.name

    @property
    def config(self) -> MixerConfig:
        return self.side.config

    @property
    def layout(self) -> Layout:
        return self.side.layout

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights under canonical names, checked to fill their layout."""
        self.checkpoint.check()
        return relabel(self.checkpoint.arrays, self.checkpoint.layout, LINEN, self.checkpoint.config)

    def run(self, images: np.ndarray, dtype: Any) -> Stages:
        """The stages, computed in `dtype` by the side itself."""
        return self.side.run(self.weights, images, dtype)

    def reference(self, images: np.ndarray) -> Stages:
        """The stages of the NumPy reference, in float64, with the side's sizes, conventions and weights."""
        return RUNNERS["reference"](self.config, self.weights, images.astype(np.float64))

    def gradients(self, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
        return self.side.gradients(self.weights, images, cotangent)

    def following(self, config: MixerConfig) -> WeightedSide:
        """A model of ours with `config` in the side's place, on the same weights."""
        return WeightedSide(self.side.following(config), self.checkpoint)

    def holding(self, weights: Mapping[str, np.ndarray], source: str) -> WeightedSide:
        """The same side on other weights, which are under canonical names."""
        return WeightedSide(self.side, Checkpoint(weights, LINEN, self.config, None, True, source))
