"""`Candidate`: a model that is not ours, run on weights and images of our choice and searched for a Mixer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.arrays.stacking import join_stacks
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.io import load
from mixer_equiv.equivalence.mixer.find import find_mixer
from mixer_equiv.equivalence.mixer.reference import official_programs
from mixer_equiv.equivalence.mixer.result import Found
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.errors import MixerEquivError
from mixer_equiv.layouts import LINEN, NEUTRAL

Taps = dict[str, np.ndarray]

# How many images a model is searched with: more than one, so that none is taken for all; a model with
# a loop over images is the official one for one alone.
BATCHES = (2, 1)

# How many more images it is then run on, to see whether they change what the first ones give.
MORE = 3

# How often a model that draws random numbers is run to see whether its outputs depend on them.
RUNS = 32

# The seed of parameters that the official model does not have.
DRAWN = 9

IN_TRAINING = (
    "in train mode it computes something else, as with dropout, stochastic depth or BatchNorm; "
    "what is verified is eval mode"
)


@dataclasses.dataclass(eq=False)
class Candidate:
    """A model, how it is recorded, and the Mixer that was found in it.

    `record(images, draw, dtype, every)` runs it on images (batch, height, width, channels) with parameters
    drawn by name and shape, keeping `every` value or the outputs alone. `own` are its own parameters by
    name, and `put` gives it others. `differentiate(images, draw, output, cotangent, dtype)` gives the gradients,
    by name, of the sum of an output times a cotangent. `rerun(images, draw, training, seed)` gives its
    outputs by their paths, in eval or train mode if it `has_modes`, and with generators so seeded;
    `notices` are what a user should know of how it is called. `computed` are those of its parameters that it
    computes from others, so that they are what they are put to but for rounding.
    """

    name: str
    framework: str
    record: Callable[[np.ndarray, Draw, Any, bool], Trace]
    own: Mapping[str, Any]
    put: Callable[[Mapping[str, np.ndarray]], None]
    differentiate: Callable[[np.ndarray, Draw, str, np.ndarray, Any], Mapping[str, np.ndarray]]
    rerun: Callable[[np.ndarray, Draw, bool, int], Mapping[str, np.ndarray]]
    notices: tuple[str, ...] = ()
    has_modes: bool = True
    computed: tuple[str, ...] = ()

    def trace(self, images: np.ndarray, draw: Draw, dtype: Any = np.float64, *, every: bool = True) -> Trace:
        """A recorded run. Raises `MixerEquivError` where the model raises or returns no array."""
        with np.errstate(all="ignore"):
            trace = self.record(images, draw, dtype, every)
        if not trace.outputs:
            raise MixerEquivError(f"{self.name} returned no array; a Mixer gives logits (batch, classes)")
        return trace

    def find(self, image: tuple[int, int, int], seed: int) -> Found:
        """The Mixer in it, for images of (channels, height, width), found alike with two seeds.

        Two images at a time, or one where that alone gives a Mixer.
        """
        best = self._best(image, seed)
        images, draw = self._images(image, seed, best.batch), generic(seed)
        plain = self.rerun(images, draw, False, 0)
        if not self._same_in_training(images, draw, best.output, plain):
            best = best.noting(IN_TRAINING)
        runs = RUNS if best.draws else 1
        if any(not _alike(plain, self.rerun(images, draw, False, other)) for other in range(1, runs + 1)):
            reason = f"two runs of {self.name} on the same images differ, in eval mode: is dropout always on?"
            # What was taken for a number of its own may be chance; where it departs is not.
            unknown = tuple(deviation for deviation in best.deviations if deviation.kind == "unknown")
            return dataclasses.replace(best, deviations=unknown).but(reason)
        if best.draws:
            best = best.noting(f"it draws random numbers in eval mode, which moved no output in {runs} runs")
        best = self._by_image(best, np.concatenate([images, self._images(image, seed + 1, MORE)]), draw, plain)
        if best.config is None or not best.is_whole or best.is_by_convention:
            return best  # running it on other weights, beside a model of its config, is the second opinion
        again = self._find_once(image, seed + 1, best.batch)
        if (again.layout, again.deviations, again.config) != (best.layout, best.deviations, best.config):
            reason = f"{self.name} is one thing with some weights and another with others"
            return best.but(reason)
        return best

    def _best(self, image: tuple[int, int, int], seed: int) -> Found:
        best = self._find_once(image, seed, BATCHES[0], thorough=False)
        if not best.is_settled:
            other = self._find_once(image, seed, BATCHES[1], thorough=False)
            best = other if other.is_settled or len(other.known) > len(best.known) else best
        return best if best.is_settled else self._find_once(image, seed, best.batch)

    def _find_once(self, image: tuple[int, int, int], seed: int, batch: int, *, thorough: bool = True) -> Found:
        images = self._images(image, seed, batch)
        trace = self.trace(images, generic(seed))
        found = find_mixer(trace, images, self.name, self.framework, thorough=thorough)
        return found.noting(*self.notices, *trace.notices)

    def _by_image(self, found: Found, more: np.ndarray, draw: Draw, plain: Mapping[str, np.ndarray]) -> Found:
        """What was found, or why the output is not a row for each image, whatever the others; `plain` is of the first.

        A model may not take so many images.
        """
        if not found.is_whole:
            return found
        alone = plain[found.output]
        with contextlib.suppress(MixerEquivError):
            among = self.rerun(more, draw, False, 0).get(found.output, np.empty(0))
            if among.shape[:1] != more.shape[:1]:
                return found.but(f"{self.name} returns {among.shape} for {len(more)} images, and no row for each")
            first = among.reshape(len(more), -1)[: found.batch]
            if first.size != alone.size or not np.allclose(first.reshape(-1), alone.reshape(-1), 1e-9, 1e-9):
                return found.but(f"what {self.name} computes for an image depends on the other images of its batch")
        row = found.batch, alone.size // found.batch
        return found if alone.shape == row else found.noting(f"it returns {alone.shape}, which is read as {row}")

    def _images(self, image: tuple[int, int, int], seed: int, batch: int) -> np.ndarray:
        channels, height, width = image
        return np.random.default_rng([seed, 2]).standard_normal((batch, height, width, channels))

    def _same_in_training(self, images: np.ndarray, draw: Draw, output: str, plain: Mapping[str, np.ndarray]) -> bool:
        """Whether train mode gives what eval mode does, at this output or else the first."""
        if not self.has_modes:
            return True
        output = output if output in plain else next(iter(plain))
        try:
            made = self.rerun(images, draw, True, 0).get(output)
        except MixerEquivError:  # it takes more there, such as labels
            return False
        expected = plain[output]
        return (
            made is not None
            and made.shape == expected.shape
            and np.allclose(made, expected, 1e-9, 1e-9, equal_nan=True)
        )

    def drawn(self, found: Found) -> dict[str, np.ndarray]:
        """Canonical weights that it has with random parameters of its own, where these are not official ones."""
        assert found.sources is not None
        assert found.config is not None
        trace = self.trace(np.zeros((found.batch, *found.image_hw, found.in_channels)), generic(DRAWN))
        bindings = LINEN.bindings(found.config.num_blocks, head=found.config.num_classes > 0)
        drawn = {}
        for name, binding in bindings.items():
            neutral = NEUTRAL.get(name.rpartition("/")[2], 0)
            axes = tuple(binding.row.canonical_axes.split())
            drawn[name] = found.sources[name].array(trace, axes, neutral)
        return drawn

    def taps(self, found: Found, weights: Mapping[str, np.ndarray], images: np.ndarray, dtype: Any) -> Taps:
        """The stages of a run on canonical weights, each in the official model's order of elements.

        Where it has no layout, the weights must be those that it has `drawn`.
        """
        assert found.config is not None
        arrays = {} if found.layout is None else join_stacks(relabel(weights, LINEN, found.layout, found.config))
        others = generic(DRAWN)  # also for parameters that no official model has

        def given(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return arrays[name] if name in arrays else others(name, shape)

        parts = []
        for start in range(0, len(images), found.batch):
            part = images[start : start + found.batch]
            padded = np.concatenate([part, np.repeat(part[-1:], found.batch - len(part), axis=0)])
            every = np.dtype(dtype) == np.float64
            trace = self.trace(padded, given, dtype, every=every)
            stages = self._stages(found, trace, every)
            parts.append({name: tap[: len(part)].astype(dtype) for name, tap in stages.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def gradients(
        self,
        found: Found,
        arrays: Mapping[str, np.ndarray],
        images: np.ndarray,
        cotangent: np.ndarray,
        dtype: Any = np.float64,
    ) -> dict[str, np.ndarray]:
        """Gradients by the names of the layout, of the sum of the output times `cotangent`, one image at a time."""
        given, others = join_stacks(arrays), generic(DRAWN)

        def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
            return given[name] if name in given else others(name, shape)

        total: dict[str, np.ndarray] = {}
        for image, row in zip(images, cotangent, strict=True):
            try:
                made = self.differentiate(image[None], draw, found.output, row[None], dtype)
            except MixerEquivError:
                if found.batch == 1:
                    raise
                # It takes so many images and no other number, as exported programs do: others, which count for nothing.
                batch = np.repeat(image[None], found.batch, axis=0)
                alone = np.concatenate([row[None], np.zeros((found.batch - 1, len(row)))])
                made = self.differentiate(batch, draw, found.output, alone, dtype)
            for name, array in arrays.items():
                total[name] = total.get(name, 0.0) + np.asarray(_part(made, name)).reshape(array.shape)
        return total

    def _stages(self, found: Found, trace: Trace, every: bool) -> Taps:
        """The taps of a run, or the last of them alone."""
        assert found.config is not None
        told = every and len(trace.values) == found.num_values  # else it took other steps on these weights
        taps = {stage: tap.of(trace.values[tap.number].array) for stage, tap in found.taps.items() if told}
        output = trace.values[trace.outputs[found.output]].array
        last = list(official_programs(found.config.num_blocks)[-2 if found.config.num_classes else -1].stages)[-1]
        taps[last] = output.reshape(found.batch, -1)
        return taps

    def checkpoint(self, found: Found) -> Checkpoint:
        """Its own weights, in the layout found."""
        assert found.layout is not None
        assert found.config is not None
        wanted = found.layout.parameters(found.config.num_blocks)
        arrays = {name: to_numpy(name, _part(self.own, name)) for name in wanted}
        return Checkpoint(arrays, found.layout, found.config, None, True, self.name)


def checkpoint_of(params: Any, found: Found | None = None) -> Checkpoint:
    """A checkpoint, the path of one, or arrays by name, read in the layout that was `found` in a model if any."""
    if found is None:
        return load(params) if isinstance(params, str | os.PathLike) else as_checkpoint(params)
    assert found.layout is not None
    if isinstance(params, str | os.PathLike):
        return load(params, layout=found.layout, image_size=found.image_hw)
    return Checkpoint.from_arrays(params, layout=found.layout, image_size=found.image_hw)


def _alike(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)


def _part(own: Mapping[str, Any], name: str) -> Any:
    """A parameter, or the part "kernels[3]" of one."""
    whole, *places = re.split(r"\[(\d+)\]", name)
    part = own[whole]
    for place in places:
        part = part[int(place)] if place else part
    return part


def generic(seed: int) -> Draw:
    """Random values that no two parameters have in common, of sizes that keep activations near 1.

    Each depends on the seed and the parameter's name alone.
    """

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng([seed, *name.encode()])
        if len([size for size in shape if size > 1]) < 2:
            # With more axes it may be a kernel of one column, of which a GELU must not see large sums alone.
            size = 1.0 if len(shape) < 2 else float(np.sqrt(np.prod(shape)))
            return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape) / size
        fan = max(shape[0], int(np.prod(shape[1:])))
        return rng.standard_normal(shape) / np.sqrt(fan)

    return draw
