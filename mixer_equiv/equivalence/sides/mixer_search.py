"""`search`: the Mixer in somebody else's model, sought with several weights, batches and seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.equivalence.mixer.find import find_mixer
from mixer_equiv.equivalence.mixer.replay import replay
from mixer_equiv.equivalence.mixer.result import Breach, FoundMixer, NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.idle import idle_operations
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic
from mixer_equiv.equivalence.sides.trials import (
    IN_PAIRS,
    IN_TURN,
    MANY,
    REASONS,
    InTurn,
    Subject,
    find_branches,
    find_dependence,
    find_limits,
    find_memory,
)
from mixer_equiv.errors import MixerEquivError, summarize

Found = FoundMixer | NothingFound
Outputs = Mapping[str, np.ndarray]

# A model is searched with two images, so that none is taken for all of them; with one where that alone gives a
# Mixer, as for a model with a loop over images.
BATCHES = (2, 1)

# The standard deviation of images that make what follows the stem large.
LARGE = 100.0

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
        subject = Subject(self.model, generic(self.seed), found.output)
        images = self._images(self.seed, MANY)
        first, *others = self._outputs(found, images)
        if not self._same_in_training(found, images[: found.batch], first):
            found = found.noting(IN_TRAINING)
        if any(not _alike(first, other) for other in others):
            reason = f"two runs of {self.model.name} on the same images differ, in eval mode: is dropout always on?"
            # A number that was taken for a constant of the code may be chance; the place where it departs is not.
            unknown = tuple(deviation for deviation in found.deviations if deviation.kind == "unknown")
            return dataclasses.replace(found.refused(reason), deviations=unknown)
        if found.draws:
            runs = len(others)
            found = found.noting(Notice(f"it draws random numbers in eval mode, which moved no output in {runs} runs"))
        found = self._tried(found, subject, images, first)
        if found.decisions and isinstance(found, FoundMixer):
            found = found.noting(_decided(found.decisions))
        if isinstance(found, NothingFound) or found.is_by_convention:
            return found  # running it on other weights, beside a model of its config, is the second opinion
        again = self._once(self.seed + 1, found.batch)
        if isinstance(again, NothingFound) or _finding(found) != _finding(again):
            return found.refused(f"{self.model.name} is one thing with some weights and another with others")
        return found

    def _outputs(self, found: Found, images: np.ndarray) -> list[Outputs]:
        """The outputs for as many images as the search had, with generators of one seed and then of others."""
        batch, draw = images[: found.batch], generic(self.seed)
        seeds = range(1 + (RANDOM_RUNS if found.draws else 1))
        return [self.model.calls([batch], draw, seed=seed).outputs[0] for seed in seeds]

    def _tried(self, found: Found, subject: Subject, images: np.ndarray, outputs: Outputs) -> Found:
        """The result after the trials of the model's outputs, of which some are `outputs`."""
        if not found.output:
            subject = dataclasses.replace(subject, output=next(iter(outputs), ""))
        shape, row = outputs[subject.output].shape, (found.batch, outputs[subject.output].size // found.batch)
        if found.reached_output and shape != row:
            found = found.noting(Notice(f"it returns {shape}, which is read as {row}"))
        seen = self._in_turn(found, subject, images)
        if seen is None:
            return found
        if seen.rows[0].size == 0:
            many = len(seen.numbers[0])
            made = subject.call(images[:many]).outputs[0].get(subject.output, np.empty(0)).shape
            return found.refused(f"{self.model.name} returns {made} for {many} images, and no row for each")
        breach = find_dependence(subject, seen, images)
        if breach is None and seen.counted:
            breach = find_memory(subject, images[:1], seen.changed)
        if breach is not None:
            return self._refused(found, breach)
        if seen.counted:
            found = found.noting(_written(seen.counted))
        return self._tried_elsewhere(found, len(seen.numbers[-1]) if seen.numbers is IN_PAIRS else 1)

    def _refused(self, found: Found, breach: Breach) -> NothingFound:
        return found.refused(f"{self.model.name} {REASONS[breach.fault]}", breach)

    def _tried_elsewhere(self, found: Found, at_least: int) -> Found:
        """The result after trials on images of other kinds, and on weights and images that are large.

        A Mixer whose deviations are settings alone is held against the official program with these settings. The model
        is called on `at_least` so many images.
        """
        function = replay(found.config, found.deviations) if isinstance(found, FoundMixer) else None
        if isinstance(found, NothingFound) or function is None:
            return found
        side, config = ForeignSide(self.model, found), found.config
        usual, large = side.draw(self.seed), side.draw(self.seed, large=True)
        subject = Subject(self.model, usual.values, found.output, at_least)
        shape = 1, *config.image_hw, config.in_channels
        if breach := find_branches(subject, partial(function, usual.canonical), shape, self.seed):
            return self._refused(found, breach.also(found.decisions))
        images = LARGE * self._images(self.seed, found.batch)
        subject = dataclasses.replace(subject, draw=large.values)
        breach = find_limits(subject, partial(function, large.canonical), images)
        if not found.idle and breach is None:
            return found
        still = idle_operations(self.model.trace(images, large.values))
        if breach is not None:
            reached = [operation for operation in found.idle if operation not in still]
            return self._refused(found, breach.also(reached))
        unreached = [operation for operation in found.idle if operation in still]
        return found.noting(_idle(unreached)) if unreached else found

    def _in_turn(self, found: Found, subject: Subject, images: np.ndarray) -> InTurn | None:
        """Calls on batches of every size, or of the only one that the model takes; None where it takes none other."""
        for numbers in (IN_TURN, IN_PAIRS):
            with contextlib.suppress(MixerEquivError):
                return InTurn.of(subject, images, numbers)
        return None

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

    def _same_in_training(self, found: Found, images: np.ndarray, outputs: Outputs) -> bool:
        """Whether train mode gives what eval mode does, at the output found or else the first."""
        if not self.model.has_modes:
            return True
        output = found.output if found.output in outputs else next(iter(outputs))
        try:
            made = self.model.calls([images], generic(self.seed), training=True).outputs[0].get(output)
        except MixerEquivError:  # it takes more there, such as labels
            return False
        expected = outputs[output]
        return (
            made is not None
            and made.shape == expected.shape
            and np.allclose(made, expected, 1e-9, 1e-9, equal_nan=True)
        )


def _idle(operations: Collection[str]) -> Notice:
    text = f"not seen at work, and so not compared: {summarize(operations, 3)}, whose results were their inputs"
    return Notice(text)


def _decided(places: Collection[str]) -> Notice:
    text = (
        f"numbers of the images decide, or could, what is run, and no kind of image was seen to: {summarize(places, 3)}"
    )
    return Notice(text, "decision")


def _written(paths: Collection[str]) -> Notice:
    text = f"calls change {summarize(tuple(paths), 3)}, on which no output was seen to depend"
    return Notice(text, "state_written")


def _alike(one: Outputs, other: Outputs) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)


def _finding(found: FoundMixer) -> tuple[Any, ...]:
    return found.layout, found.config, found.deviations
