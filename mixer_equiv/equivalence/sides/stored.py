"""A checkpoint as a side: its weights, run in the model of this package for its layout's framework."""

from __future__ import annotations

import dataclasses

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.built_in import RunByUs
from mixer_equiv.layouts import Layout


@dataclasses.dataclass(frozen=True)
class StoredSide(RunByUs):
    """A checkpoint: the question is about its weights.

    `config` has its sizes, and the conventions under which it is run.
    """

    name: str
    own_weights: Checkpoint
    config: MixerConfig

    @property
    def layout(self) -> Layout:
        return self.own_weights.layout

    @property
    def runner(self) -> str:
        return self.layout.framework

    def following(self, config: MixerConfig) -> StoredSide:
        return dataclasses.replace(self, config=config)

    def resized(self, image_hw: tuple[int, int]) -> StoredSide:
        """The same weights for images of (height, width) `image_hw`."""
        config = self.config.resized(image_hw)
        held = dataclasses.replace(self.own_weights, config=config, image_size_is_assumed=False)
        return dataclasses.replace(self, own_weights=held, config=config)
