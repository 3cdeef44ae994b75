"""`cover`: put a model on all trials that a verdict covers, and refuse what was found in it where one fails.

A search follows one run. Here the model is run again: with other random numbers, in train mode, several times in a row,
on batches of other sizes, on images of every kind, and on weights that reach its limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np

from mixer_equiv.equivalence.mixer.replay import Function, replay
from mixer_equiv.equivalence.mixer.result import Breach, Found, FoundMixer, NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.idle import idle_operations
from mixer_equiv.equivalence.sides.drawn_weights import USUAL, Size, random_params
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic, usual_images
from mixer_equiv.equivalence.sides.trials import (
    FEW_KINDS,
    IN_PAIRS,
    IN_TURN,
    KINDS,
    LARGER,
    LARGEST,
    MANY,
    REASONS,
    Expected,
    InTurn,
    Subject,
    branch_at_random,
    departs,
    find_branches,
    find_dependence,
    find_float32,
    find_fresh,
    find_limits,
    find_memory,
    find_overwritten,
    find_stale,
    find_ways,
)
from mixer_equiv.errors import MixerEquivError, summarize

Outputs = Mapping[str, np.ndarray]

# By how much LayerNorms and images are smaller or larger than usual, the largest last.
SCALES = {"small": 0.05, "somewhat large": 5.0, "large": 40.0}

# By how much kernels and biases are, which reaches what code does to weights. With tiny ones the stream is so faint
# that eps shows.
FACTORS = {"huge": 100.0, "tiny": 1e-3}

# The most multiply-adds for an image of models that are put on all trials; larger ones are on the most telling. And the
# most of those that are given hundreds of images at once.
SMALL_MODEL, TINY_MODEL = 10**8, 10**7

# Draws of weights for a model that decides on numbers of its images, so that all its ways are likely to be taken.
DRAWS_TO_DECIDE = 6

# Draws of weights and images for a model that departs from the official function on the first.
NUM_DRAWS = 4

# A model on trial with some weights, and what it is expected to compute with them.
Tried = tuple[Subject, Expected]

# Runs of a model that draws random numbers, to see whether its outputs depend on them.
RANDOM_RUNS = 32

IN_TRAINING = Notice(
    "in train mode it computes something else, as with dropout, stochastic depth or BatchNorm; "
    "what is verified is eval mode",
    "train_mode",
)


def cover(model: ForeignModel, found: Found, image: tuple[int, int, int], seed: int) -> Found:
    """The result `found` in a model that takes images of (channels, height, width), after all trials."""
    return _Coverage(model, image, seed).of(found)


@dataclasses.dataclass(frozen=True)
class _Coverage:
    model: ForeignModel
    image: tuple[int, int, int]
    seed: int

    def of(self, found: Found) -> Found:
        if isinstance(found, NothingFound) and found.is_blind:
            return found
        images = usual_images(self.image, self.seed, MANY)
        first, *others = self._under_other_seeds(found, images)
        output = found.output if found.output in first else next(iter(first), "")
        if not self._same_in_training(found, images, first[output], output):
            found = found.noting(IN_TRAINING)
        if any(not _alike(first, other) for other in others):
            return self._random(found)
        if found.draws:
            runs = len(others)
            found = found.noting(Notice(f"it draws random numbers in eval mode, which moved no output in {runs} runs"))
        row = found.batch, first[output].size // found.batch
        if found.reached_output and first[output].shape != row:
            found = found.noting(Notice(f"it returns {first[output].shape}, which is read as {row}"))
        subject = Subject(self.model, generic(self.seed), output)
        found, at_least = self._in_turn(found, subject, images)
        return found if isinstance(found, NothingFound) else self._elsewhere(found, at_least)

    def _under_other_seeds(self, found: Found, images: np.ndarray) -> list[Outputs]:
        """The outputs for as many images as the search had, with generators of one seed and then of others."""
        batch, draw = images[: found.batch], generic(self.seed)
        seeds = range(1 + (RANDOM_RUNS if found.draws else 1))
        return [self.model.calls([batch], draw, seed=seed).outputs[0] for seed in seeds]

    def _same_in_training(self, found: Found, images: np.ndarray, expected: np.ndarray, output: str) -> bool:
        """Whether train mode gives what eval mode does."""
        if not self.model.has_modes:
            return True
        try:
            calls = self.model.calls([images[: found.batch]], generic(self.seed), training=True)
        except MixerEquivError:  # it takes more there, such as labels
            return False
        made = calls.outputs[0].get(output)
        return (
            made is not None
            and made.shape == expected.shape
            and np.allclose(made, expected, 1e-9, 1e-9, equal_nan=True)
        )

    def _random(self, found: Found) -> NothingFound:
        reason = f"two runs of {self.model.name} on the same images differ, in eval mode: is dropout always on?"
        # A number that was taken for a constant of the code may be chance; the place where it departs is not.
        unknown = tuple(deviation for deviation in found.deviations if deviation.kind == "unknown")
        return dataclasses.replace(found.refused(reason), deviations=unknown)

    def _in_turn(self, found: Found, subject: Subject, images: np.ndarray) -> tuple[Found, int]:
        """The result after calls in a row, and how many images the model must be given at least."""
        seen = None
        in_turn = (*IN_TURN, *(LARGER if _is_small(found) else ()), *(LARGEST if _is_small(found, TINY_MODEL) else ()))
        for numbers in (in_turn, IN_PAIRS):  # an exported program takes one size of batch alone
            with contextlib.suppress(MixerEquivError):
                seen = seen or InTurn.of(subject, images, numbers)
        if seen is None:
            return found, 1
        if not seen.rows[0].size:
            return found.refused(f"{self.model.name} {_no_rows(subject, images)}"), 1
        breach = find_overwritten(subject, seen) or find_dependence(subject, seen, images)
        for dtype in (np.float64, np.float32) if seen.counted else ():
            counting = dataclasses.replace(subject, dtype=dtype)
            breach = breach or find_memory(counting, images[: len(seen.numbers[-1])], seen.changed)
        if breach is not None:
            return self._refused(found, breach.also(found.decisions)), 1
        if seen.counted:
            found = found.noting(_written(seen.counted))
        return found, len(IN_PAIRS[0]) if seen.numbers is IN_PAIRS else 1

    def _elsewhere(self, found: FoundMixer, at_least: int) -> Found:
        """The result after trials on images of other kinds, and on weights and images of other sizes.

        A Mixer whose deviations are settings alone is held against the official program with these settings. The model
        is called on `at_least` so many images.
        """
        found, function = self._without_effect(found)
        if function is None:
            return self._noting_unseen(found, found.idle)
        side = ForeignSide(self.model, found)
        subject = Subject(self.model, generic(self.seed), found.output, at_least)
        images = usual_images(self.image, self.seed, found.batch if _is_small(found) else 1)
        usual = random_params(found.config, self.seed) if side.is_named else None

        def drawn(seed: int, size: Size = USUAL) -> Tried:
            """The model with weights drawn, and what it is expected to compute with them."""
            weights = side.draw(seed, size, usual if seed == self.seed else None)
            return dataclasses.replace(subject, draw=weights.values), partial(function, weights.canonical)

        departing = self._departing(drawn, len(images))
        if departing == NUM_DRAWS:
            return self._noting_unseen(found, found.idle)  # it is another function everywhere, as the judge will see
        idle = self._always_idle(found, drawn, images, side.is_named) if found.idle else ()
        trials = self._trials(found, drawn, images, departing, side.is_named)
        breach = next((breach for breach in trials if breach is not None), None)
        if breach is not None:
            reached = [operation for operation in found.idle if operation not in idle]
            return self._refused(found, breach.also(reached or found.decisions))
        return self._noting_unseen(found, idle)

    def _trials(
        self, found: FoundMixer, drawn: Callable[..., Tried], images: np.ndarray, departing: int, is_named: bool
    ) -> Iterator[Breach | None]:
        """The breaches of all trials on weights that are `drawn` by a seed and of a size, cheap ones first."""
        yield self._branch(drawn, found, departing)
        for size, scale in _scales(found).items():
            where = f"where activations are some {scale:g} times as large as usual"
            tried = drawn(self.seed, Size(scale=scale))
            yield find_limits(*tried, scale * images, size, where)
        yield find_float32(*tried, scale * images, found.narrow_dtypes, "large values")
        if is_named:  # else weights are computed from parameters, by exponentials for all that is known
            for size, factor in FACTORS.items():
                where = f"where kernels and biases are {factor:g} times as large as usual"
                tried = drawn(self.seed, Size(factor=factor))
                yield find_limits(*tried, images, size, where)
            yield find_float32(*tried, images, found.narrow_dtypes, "a faint stream")
            yield find_fresh(*drawn(self.seed, Size(fresh=True)), images)
        usual = drawn(self.seed)[0]
        yield find_stale(usual, drawn(self.seed + 1)[0].draw, images)
        yield find_ways(usual, images, self._ways(found))

    def _ways(self, found: FoundMixer) -> tuple[str, ...]:
        """The ways in which the model is called: of a large one the first two, and none that leaves dtypes narrow."""
        if self.model.framework == "flax" and found.narrow_dtypes:  # which a recorder alone widens
            return ()
        return self.model.ways if _is_small(found) else self.model.ways[:2]

    def _always_idle(
        self, found: FoundMixer, drawn: Callable[..., Tried], images: np.ndarray, is_named: bool
    ) -> list[str]:
        """The operations that change nothing on weights and images of any size either."""
        idle = set(found.idle)
        sizes = [Size(scale=scale) for scale in _scales(found).values()]
        for size in (*sizes, *(Size(factor=factor) for factor in FACTORS.values() if is_named)):
            draw = drawn(self.seed, size)[0].draw
            idle &= set(idle_operations(self.model.trace(size.scale * images, draw)))
        return [operation for operation in found.idle if operation in idle]

    def _without_effect(self, found: FoundMixer) -> tuple[FoundMixer, Function | None]:
        """The result without steps that no output shows, and the official function with the deviations that are left.

        There is no function where deviations are more than settings of steps.
        """
        if function := replay(found.config, found.all_deviations):
            return found, function
        settings = tuple(deviation for deviation in found.deviations if replay(found.config, [deviation]))
        if (function := replay(found.config, settings)) is None:
            return found, None
        side = ForeignSide(self.model, found)
        for seed in range(self.seed, self.seed + NUM_DRAWS):
            weights, images = side.draw(seed), usual_images(self.image, seed, found.batch)
            tried = Subject(self.model, weights.values, found.output)
            if departs(tried, partial(function, weights.canonical), images):
                return found, None
        hidden = [f"{d.step}{f' at {d.place}' if d.place else ''}" for d in found.deviations if d not in settings]
        noted = found.noting(Notice(f"what it does otherwise at {summarize(hidden, 3)} changes no output"))
        kept = {name: place for name, place in found.stages.items() if name in _BEHIND_THE_STREAM}
        return dataclasses.replace(noted, deviations=settings, stages=kept), function

    def _departing(self, drawn: Callable[..., Tried], batch: int) -> int:
        """On how many of `NUM_DRAWS` draws of usual weights and images the model departs; 0 if not on the first."""
        if not departs(*drawn(self.seed), usual_images(self.image, self.seed, batch)):
            return 0
        others = range(self.seed + 1, self.seed + NUM_DRAWS)
        return 1 + sum(departs(*drawn(seed), usual_images(self.image, seed, batch)) for seed in others)

    def _branch(self, drawn: Callable[..., Tried], found: FoundMixer, departing: int) -> Breach | None:
        """A breach where images of some kind, or some draws of all, give another function."""
        channels, height, width = self.image
        decides = bool(found.decisions)
        kinds = list(KINDS) if decides or _is_small(found) else FEW_KINDS
        for number in range(DRAWS_TO_DECIDE if decides else 1):
            shape, seed = (1, height, width, channels), self.seed + number
            if breach := find_branches(*drawn(seed), shape, seed, kinds, decides=decides):
                return breach
        return branch_at_random(departing, NUM_DRAWS) if departing else None

    def _refused(self, found: Found, breach: Breach) -> NothingFound:
        return found.refused(f"{self.model.name} {REASONS[breach.fault]}", breach)

    def _noting_unseen(self, found: FoundMixer, idle: Collection[str]) -> FoundMixer:
        """The result with notices of what no trial saw at work."""
        saved = [name for name in found.constants if name in self.model.saved]
        others = {name: held for name, held in self.model.constants.items() if name in found.constants}
        plain = [name for name, held in others.items() if name not in saved and math.prod(held.shape) > 1]
        decided = found.decisions, found.weight_decisions
        notices = ((_idle, idle), (_decided, decided[0]), (_decided_by_weights, decided[1]), (_constant, saved))
        return found.noting(*(notice(what) for notice, what in (*notices, (_plain, plain)) if what))


# Stages at which nothing is left that a LayerNorm takes away.
_BEHIND_THE_STREAM = ("pre_head_layer_norm", "pooled", "logits")


def _is_small(found: Found, limit: int = SMALL_MODEL) -> bool:
    return isinstance(found, FoundMixer) and found.config.macs < limit


def _scales(found: FoundMixer) -> dict[str, float]:
    """The sizes of activations that are tried, by name: of a large model the largest alone."""
    return SCALES if _is_small(found) else {"large": SCALES["large"]}


def _no_rows(subject: Subject, images: np.ndarray) -> str:
    made = subject.call(images).outputs[0].get(subject.output, np.empty(0)).shape
    return f"returns {made} for {len(images)} images, and no row for each"


def _idle(operations: Collection[str]) -> Notice:
    results = "whose results were their inputs, or one number throughout"
    return Notice(f"not seen at work, and so not compared: {summarize(operations, 3)}, {results}")


def _decided(places: Collection[str]) -> Notice:
    text = f"numbers of the images decide, or could, what is run: {summarize(places, 3)}; no kind of image was seen to"
    return Notice(text, "decision")


def _decided_by_weights(places: Collection[str]) -> Notice:
    text = (
        f"numbers of the weights decide, or could, what is run: {summarize(places, 3)}; no draw of weights was seen to"
    )
    return Notice(text, "decision")


def _written(paths: Collection[str]) -> Notice:
    text = f"calls change {summarize(paths, 3)}, on which no output was seen to depend"
    return Notice(text, "state_written")


def _constant(names: Collection[str]) -> Notice:
    text = (
        f"buffers of the state_dict that meet the images, and that other checkpoints may hold otherwise: "
        f"{summarize(names, 3)}; verified with the values that they have"
    )
    return Notice(text, "constant_buffer")


def _plain(names: Collection[str]) -> Notice:
    return Notice(
        f"tensors that are in no state_dict meet the images, with the values that they have: {summarize(names, 3)}"
    )


def _alike(one: Outputs, other: Outputs) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n], equal_nan=True) for n in one)
