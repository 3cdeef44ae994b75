"""`search`: the Mixer in somebody else's model, sought with several weights, batches and seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_equiv.equivalence.mixer.find import find_mixer
from mixer_equiv.equivalence.mixer.result import FoundMixer, NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.trace import Draw
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic
from mixer_equiv.errors import MixerEquivError

Found = FoundMixer | NothingFound
Outputs = Mapping[str, np.ndarray]

# A model is searched with two images, so that none is taken for all of them; with one where that alone gives a
# Mixer, as for a model with a loop over images.
BATCHES = (2, 1)

# Images that are added to see whether they change the results for the first ones.
MORE_IMAGES = 3

# Runs of a model that draws random numbers, to see whether its outputs depend on them.
RANDOM_RUNS = 32

IN_TRAINING = Notice(
    "in train mode it computes something else, as with dropout, stochastic depth or BatchNorm; "
    "what is verified is eval mode",
    "train_mode",
)


def search(model: ForeignModel, image: tuple[int, int, int], seed: int) -> Found:
    """Search a model that takes images of (channels, height, width) for a Mixer, which two seeds must find alike.

    Raises `MixerEquivError` for a model that cannot be run.
    """
    return _Search(model, image, seed).result()


@dataclasses.dataclass(frozen=True)
class _Search:
    model: ForeignModel
    image: tuple[int, int, int]
    seed: int

    def result(self) -> Found:
        found = self._best()
        images, draw = self._images(self.seed, found.batch), generic(self.seed)
        outputs = self.model.rerun(images, draw, False, 0)
        if not self._same_in_training(images, draw, found.output, outputs):
            found = found.noting(IN_TRAINING)
        runs = RANDOM_RUNS if found.draws else 1
        if any(not _alike(outputs, self.model.rerun(images, draw, False, other)) for other in range(1, runs + 1)):
            reason = f"two runs of {self.model.name} on the same images differ, in eval mode: is dropout always on?"
            # A number that was taken for a constant of the code may be chance; the place where it departs is not.
            unknown = tuple(deviation for deviation in found.deviations if deviation.kind == "unknown")
            return dataclasses.replace(found.refused(reason), deviations=unknown)
        if found.draws:
            found = found.noting(Notice(f"it draws random numbers in eval mode, which moved no output in {runs} runs"))
        if not found.reached_output:
            return found
        more = np.concatenate([images, self._images(self.seed + 1, MORE_IMAGES)])
        reason = self._dependence_on_others(found, more, draw, outputs[found.output])
        if reason:
            return found.refused(reason)
        shape, row = outputs[found.output].shape, (found.batch, outputs[found.output].size // found.batch)
        if shape != row:
            found = found.noting(Notice(f"it returns {shape}, which is read as {row}"))
        if isinstance(found, NothingFound) or found.is_by_convention:
            return found  # running it on other weights, beside a model of its config, is the second opinion
        again = self._once(self.seed + 1, found.batch)
        if isinstance(again, NothingFound) or _finding(found) != _finding(again):
            return found.refused(f"{self.model.name} is one thing with some weights and another with others")
        return found

    def _best(self) -> Found:
        best = self._once(self.seed, BATCHES[0], thorough=False)
        if not best.is_settled:
            other = self._once(self.seed, BATCHES[1], thorough=False)
            best = other if other.is_settled or len(other.known) > len(best.known) else best
        return best if best.is_settled else self._once(self.seed, best.batch)

    def _once(self, seed: int, batch: int, *, thorough: bool = True) -> Found:
        images = self._images(seed, batch)
        trace = self.model.trace(images, generic(seed))
        found = find_mixer(trace, images, self.model.name, self.model.framework, thorough=thorough)
        return found.noting(*self.model.notices, *map(Notice, trace.notices))

    def _images(self, seed: int, batch: int) -> np.ndarray:
        channels, height, width = self.image
        return np.random.default_rng([seed, 2]).standard_normal((batch, height, width, channels))

    def _dependence_on_others(self, found: Found, more: np.ndarray, draw: Draw, alone: np.ndarray) -> str:
        """Say why the output is not a row for each image, whatever the others; empty where it is.

        `alone` is the output for the first images of `more`. A model may not take so many.
        """
        name = self.model.name
        with contextlib.suppress(MixerEquivError):
            among = self.model.rerun(more, draw, False, 0).get(found.output, np.empty(0))
            if among.shape[:1] != more.shape[:1]:
                return f"{name} returns {among.shape} for {len(more)} images, and no row for each"
            first = among.reshape(len(more), -1)[: found.batch]
            if first.size != alone.size or not np.allclose(first.reshape(-1), alone.reshape(-1), 1e-9, 1e-9):
                return f"what {name} computes for an image depends on the other images of its batch"
        return ""

    def _same_in_training(self, images: np.ndarray, draw: Draw, output: str, outputs: Outputs) -> bool:
        """Whether train mode gives what eval mode does, at this output or else the first."""
        if not self.model.has_modes:
            return True
        output = output if output in outputs else next(iter(outputs))
        try:
            made = self.model.rerun(images, draw, True, 0).get(output)
        except MixerEquivError:  # it takes more there, such as labels
            return False
        expected = outputs[output]
        return (
            made is not None
            and made.shape == expected.shape
            and np.allclose(made, expected, 1e-9, 1e-9, equal_nan=True)
        )


def _alike(one: Outputs, other: Outputs) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)


def _finding(found: FoundMixer) -> tuple[Any, ...]:
    return found.layout, found.config, found.deviations
