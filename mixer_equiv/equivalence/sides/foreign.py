"""Somebody else's model as a side, once a Mixer was found in it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.arrays.stacking import join_stacks
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.mixer.official_program import official_programs
from mixer_equiv.equivalence.mixer.result import FoundMixer
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.derivatives import Derivatives
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.equivalence.sides.built_in import LAYOUT_OF, BuiltInSide
from mixer_equiv.equivalence.sides.drawn_weights import USUAL, Size, constrained, random_params
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic, part_of
from mixer_equiv.equivalence.sides.runners import Arrays, Stages
from mixer_equiv.errors import ConversionError, MixerEquivError
from mixer_equiv.layouts import LINEN, NEUTRAL, Constraint, Layout

# The seed for parameters that have no official counterpart.
EXTRA_SEED = 9


@dataclasses.dataclass(frozen=True)
class DrawnWeights:
    """Values for a model's parameters, and the canonical weights that they are."""

    values: Draw
    canonical: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ForeignSide:
    """A model that is not ours, and the Mixer that was found in it."""

    model: ForeignModel
    found: FoundMixer

    is_foreign = True

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def runner(self) -> str:
        return self.model.framework

    @property
    def config(self) -> MixerConfig:
        return self.found.config

    @property
    def layout(self) -> Layout:
        return self.found.layout if isinstance(self.found.layout, Layout) else LAYOUT_OF[self.runner]

    @property
    def is_named(self) -> bool:
        return isinstance(self.found.layout, Layout)

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        return self.found.deviations

    @property
    def all_deviations(self) -> tuple[Deviation, ...]:
        return self.found.all_deviations

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        return self.found.constraints

    @property
    def notices(self) -> tuple[Notice, ...]:
        return self.found.notices

    @property
    def replay_residual(self) -> float | None:
        return self.found.residual

    @cached_property
    def own_weights(self) -> Checkpoint | None:
        """Its own weights in the layout found; None for a model that holds none, or none that can be read."""
        if not (self.is_named and self.model.own):
            return None
        with contextlib.suppress(
            ConversionError
        ):  # a model on the meta device has no values, and is verified with random ones
            wanted = self.layout.parameters(self.config.num_blocks)
            arrays = {name: to_numpy(name, part_of(self.model.own, name)) for name in wanted}
            return Checkpoint(arrays, self.layout, self.config, None, True, self.name)
        return None

    def following(self, config: MixerConfig) -> BuiltInSide:
        return BuiltInSide(self.name, self.runner, config)

    def draw(self, seed: int, size: Size = USUAL, params: Mapping[str, np.ndarray] | None = None) -> DrawnWeights:
        """Draw weights of a size for its parameters, and the canonical ones that these are.

        `params` are the usual ones of this seed, if they were drawn before. A model whose official parameters are not
        its own can be given no canonical ones: they are what it computes.
        """
        config = self.config
        if not self.is_named:
            draw = _sized(generic(seed), size)
            return DrawnWeights(draw, self._computed(draw))
        params = random_params(config, seed) if params is None else params
        canonical = constrained(size.of(params), self.layout, config)
        return DrawnWeights(_given(join_stacks(relabel(canonical, LINEN, self.layout, config))), canonical)

    def _computed(self, draw: Draw) -> dict[str, np.ndarray]:
        """The canonical weights that it computes from its parameters."""
        config = self.config
        trace = self.model.trace(np.zeros((self.found.batch, *config.image_hw, config.in_channels)), draw)
        bindings = LINEN.bindings(config.num_blocks, head=config.num_classes > 0)
        computed = {}
        for name, binding in bindings.items():
            neutral = NEUTRAL.get(name.rpartition("/")[2], 0)
            axes = tuple(binding.row.canonical_axes.split())
            computed[name] = self.found.sources[name].array(trace, axes, neutral)
        return computed

    def run(self, weights: Arrays, images: np.ndarray, dtype: Any) -> Stages:
        """The stages in the official order of elements; without a layout, `weights` must be those `drawn`."""
        given = join_stacks(relabel(weights, LINEN, self.layout, self.config)) if self.is_named else {}
        draw, every = _given(given), np.dtype(dtype) == np.float64
        batch = self.found.batch
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            padded = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            stages = self._stages(self.model.trace(padded, draw, dtype, every=every), every)
            parts.append({name: tap[: len(part)].astype(dtype) for name, tap in stages.items()})
        # On some images a model may take other steps, and have fewer stages to show.
        shown = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: np.concatenate([part[name] for part in parts]) for name in shown}

    def _stages(self, trace: Trace, every: bool) -> Stages:
        """The stages of a recorded run, or the last of them alone."""
        found, classes = self.found, self.config.num_classes
        comparable = every and trace.path == found.path  # otherwise it took other steps on these weights and images
        stages = {name: tap.of(trace.values[tap.number].array) for name, tap in found.stages.items() if comparable}
        output = trace.values[trace.outputs[found.output]].array
        last = list(official_programs(self.config.num_blocks)[-2 if classes else -1].stages)[-1]
        stages[last] = output.reshape(found.batch, -1)
        return stages

    def gradients(self, weights: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Derivatives:
        """Gradients by the names of the layout, summed over images that are run one at a time.

        Those that are not linear are by the names of the model.
        """
        arrays = relabel(weights, LINEN, self.layout, self.config)
        draw = _given(join_stacks(arrays))
        total: dict[str, np.ndarray] = {}
        nonlinear: list[str] = []
        for image, row in zip(images, cotangent, strict=True):
            made = self._gradients_of_one(image[None], row[None], draw, images.dtype)
            nonlinear += made.nonlinear
            for name, array in arrays.items():
                total[name] = total.get(name, 0.0) + np.asarray(part_of(made, name)).reshape(array.shape)
        return Derivatives(total, nonlinear)

    def _gradients_of_one(self, image: np.ndarray, row: np.ndarray, draw: Draw, dtype: Any) -> Derivatives:
        batch, output = self.found.batch, self.found.output
        try:
            return self.model.differentiate(image, draw, output, row, dtype)
        except MixerEquivError:
            if batch == 1:
                raise
            # An exported program takes one number of images alone: the others get no weight.
            alone = np.concatenate([row, np.zeros((batch - 1, row.shape[1]))])
            return self.model.differentiate(np.repeat(image, batch, axis=0), draw, output, alone, dtype)


def _sized(draw: Draw, size: Size) -> Draw:
    """Values of a size, of which vectors may be scales of LayerNorms; what is made of others is not known."""
    return lambda name, shape: draw(name, shape) * (size.scale if len(shape) == 1 else 1.0)


def _given(arrays: Mapping[str, np.ndarray]) -> Draw:
    """`arrays` by name, and random values for the parameters that no official model has."""
    others = generic(EXTRA_SEED)
    return lambda name, shape: arrays[name] if name in arrays else others(name, shape)
