"""Trials of a model by its outputs alone: is it one function of each image, whatever was run before or beside it?

Each trial gives a `Breach` where it fails. A function has no memory (`find_memory`) and no neighbours
(`find_dependence`); it is the same for images of every kind (`find_branches`) and for weights of every size
(`find_limits`). Nothing here follows values; `coverage.py` says when each trial is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mixer_equiv.equivalence.mixer.result import Breach
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.record.calls import IMAGES, PLAIN, Calls, Way
from mixer_equiv.equivalence.record.trace import Draw
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel
from mixer_equiv.errors import MixerEquivError, summarize

# How far the rows of two calls may be apart, relative in the 2-norm. Batches of other sizes are summed in other
# orders, which costs some 1e-14.
ROW_TOLERANCE = 1e-11

# The numbers of images of a trial, and of a small batch.
MANY, PAIR = 5, 2

# Calls of a trial, each by the numbers of its images: many, each alone, two. For a model that takes batches of two
# alone, the same two in both orders.
IN_TURN = ((0, 1, 2, 3, 4), (0,), (1,), (2,), (3,), (4,), (0, 1))
IN_PAIRS = ((0, 1), (1, 0), (0, 1))


def _repeated(count: int) -> tuple[int, ...]:
    """The numbers of so many images, which come again and again."""
    return tuple(i % MANY for i in range(count))


# Calls more for models that are small: on three, and on as many as people give at a time, or a part of that more.
LARGER = ((2, 3, 4), *map(_repeated, (4, 7, 8, 16, 33)))

# More for models that are tiny: 176 is a multiple of 16, and more than 32, 64 or 128 by a part of them.
LARGEST = tuple(map(_repeated, (32, 64, 128, 176)))

# The largest error of a float32 run on large values, relative in the 2-norm, that may be rounding.
FLOAT32_TOLERANCE = 1e-3

# Calls in a row of a model that writes what stays, and the numbers of calls that are skipped before the last, which is
# the third: it is number 100 and 1000, counted from one and from zero.
CALLS = 12
SKIPPED = (10, 97, 98, 997, 998, 10**6)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model on trial: with parameters by `draw`, judged by its output at the path `output`.

    It is called on as many images as are given, or with their last repeated until there are `at_least` so many.
    """

    model: ForeignModel
    draw: Draw
    output: str
    at_least: int = 1
    dtype: Any = np.float64

    @property
    def tolerance(self) -> float:
        """How far two rows of equal images may be apart."""
        return ROW_TOLERANCE if np.dtype(self.dtype) == np.float64 else FLOAT32_TOLERANCE

    def call(self, *batches: np.ndarray, skipped: int = 0, way: Way = PLAIN) -> Calls:
        return self.model.calls(batches, self.draw, self.dtype, skipped=skipped, way=way)

    def rows(self, *batches: np.ndarray, skipped: int = 0, way: Way = PLAIN) -> list[np.ndarray]:
        """The outputs of calls in a row, a row for each image."""
        filled = list(map(self.filled, batches))
        made = zip(self.call(*filled, skipped=skipped, way=way).outputs, batches, filled, strict=True)
        return [self.rows_of(outputs, len(given))[: len(batch)] for outputs, batch, given in made]

    def filled(self, batch: np.ndarray) -> np.ndarray:
        """A batch of as many images as the model takes."""
        return np.concatenate([batch, *[batch[-1:]] * (self.at_least - len(batch))])

    def rows_of(self, outputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """An output as a row for each of `count` images; empty where it has not so many."""
        output = outputs.get(self.output, np.empty(0))
        return output.reshape(count, -1) if output.shape[:1] == (count,) else np.empty((count, 0))


@dataclasses.dataclass(frozen=True)
class InTurn:
    """Calls in a row: the numbers of the images of each, its rows, and the paths of what the calls changed.

    `shapes` are those of the outputs, of which there are no rows where the first axis is not the images'.
    """

    numbers: tuple[tuple[int, ...], ...]
    rows: tuple[np.ndarray, ...]
    changed: tuple[str, ...]
    counted: tuple[str, ...]
    overwritten: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, subject: Subject, images: np.ndarray, numbers: tuple[tuple[int, ...], ...]) -> InTurn:
        calls = subject.call(*(images[list(batch)] for batch in numbers))
        rows = [subject.rows_of(made, len(batch)) for made, batch in zip(calls.outputs, numbers, strict=True)]
        changed = tuple(dict.fromkeys((*calls.counted, *calls.written)))
        shapes = tuple(made[subject.output].shape if subject.output in made else () for made in calls.outputs)
        return cls(numbers, tuple(rows), changed, calls.counted, calls.overwritten, shapes)

    def misshapen(self) -> str:
        """Say where an output has not a row for each image, and another call shows what it would be; else nothing."""
        calls = list(zip(map(len, self.numbers), self.shapes, strict=True))
        right = next((shape[1:] for count, shape in calls if shape[:1] == (count,)), None)
        wrong = next(((count, shape) for count, shape in calls if shape[:1] != (count,)), None)
        if right is None or wrong is None:
            return ""
        count, shape = wrong
        images = "one image" if count == 1 else f"{count} images"
        return f"it returns shape {shape} for {images}, not {(count, *right)}"

    def distances(self) -> Iterator[tuple[float, int, int]]:
        """How far each row is from that of the same image at the first place: (distance, size of batch, place)."""
        first = {
            batch[0]: rows[0]
            for batch, rows in sorted(zip(self.numbers, self.rows, strict=True), key=lambda pair: -len(pair[0]))
        }
        for batch, rows in zip(self.numbers, self.rows, strict=True):
            for place, image in enumerate(batch):
                yield _apart(rows[place], first[image]), len(batch), place


def find_overwritten(subject: Subject, seen: InTurn) -> Breach | None:
    """A breach where a call wrote into what the caller has: its images, or the output of an earlier call."""
    for what in seen.overwritten:
        if what == IMAGES:
            lost, kept = "a call writes into the images that it is given", "images are only read"
        elif what == subject.output:
            lost, kept = "a call writes into the output of an earlier one", "an output stays as it is"
        else:
            continue
        return Breach("memory", lost, kept, "each call", "so that what the caller has is something else afterwards")
    return None


def find_dependence(subject: Subject, seen: InTurn, images: np.ndarray) -> Breach | None:
    """A breach where an image gives other rows at other calls, places or sizes of a batch."""
    if not _over(distance for distance, _, _ in seen.distances()):
        return None
    fresh = [subject.rows(images[list(batch)])[0] for batch in seen.numbers]  # each as a first call
    later = [_apart(row, own) for row, own in zip(seen.rows, fresh, strict=True)]
    if late := _over(later):
        return _memory(late[0], later.index(late[0]) + 1, seen.changed)
    return _neighbours(dataclasses.replace(seen, rows=tuple(fresh)))


def _neighbours(seen: InTurn) -> Breach:
    """The breach of a model that is another function at some places, with the first of them."""
    distances = list(seen.distances())
    over = [found for found in distances if not found[0] <= ROW_TOLERANCE]
    distance, size, place = (over or distances)[0]
    return Breach(
        "neighbours",
        "another result beside other images, or at another place",
        "that of the image alone",
        f"{len(over)} of {len(distances)} rows",
        seen.misshapen()
        or f"image {place} in a batch of {size} is off by {distance:.1e} from the same image at place 0",
    )


def _over(distances: Iterable[float]) -> list[float]:
    """The distances that no rounding explains."""
    return [distance for distance in distances if not distance <= ROW_TOLERANCE]


# Why a model with a breach is another function, after its name.
REASONS = {
    "neighbours": "computes for an image what depends on the other images of its batch, or on its place among them",
    "memory": "computes what depends on the calls before",
    "branch": "computes different functions for images of different kinds",
    "limit": "computes another function where values are larger or smaller than usual",
    "float32": "computes another function in float32 than in float64",
}


def _memory(distance: float, call: int, changed: Sequence[str]) -> Breach:
    what = summarize(changed, 3) if changed else "nothing that could be seen"
    return Breach(
        "memory",
        "another result at a later call",
        "the same at every call",
        f"call {call}",
        f"off by {distance:.1e} from the first call with the same images; what calls change is {what}",
    )


def find_memory(subject: Subject, image: np.ndarray, changed: Sequence[str]) -> Breach | None:
    """A breach where many calls on one image, or a number of calls that are skipped, change its result.

    `changed` are the paths of what calls change.
    """
    first, *later = subject.rows(*[image] * CALLS)
    for call, row in enumerate(later, 2):
        if not (distance := _apart(row, first)) <= subject.tolerance:
            return _memory(distance, call, changed)
    for skipped in SKIPPED:
        first, _, last = subject.rows(*[image] * 3, skipped=skipped)
        if not (distance := _apart(last, first)) <= subject.tolerance:
            return _memory(distance, 3 + skipped, changed)
    return None


def find_ways(subject: Subject, images: np.ndarray, ways: Collection[str]) -> Breach | None:
    """A breach where the model gives something else when it is called in another of these ways."""
    expected = subject.rows(images)[0]
    for name in ways:
        with contextlib.suppress(MixerEquivError):  # some models can be called in some ways alone
            if not (distance := _apart(subject.rows(images, way=Way(name))[0], expected)) <= subject.tolerance:
                found = f"something else {name}"
                return Breach(
                    "branch", found, "the same function in every mode", "every call", f"off by {distance:.1e}"
                )
    return None


def find_stale(subject: Subject, other: Draw, images: np.ndarray) -> Breach | None:
    """A breach where weights of the draw `other`, and images, that are written over those of a call do not count."""
    if not subject.model.rewrites:
        return None
    first, second = images, 1 - images
    expected = dataclasses.replace(subject, draw=other).rows(second)[0]
    try:
        last = subject.rows(first, second, way=Way(rewritten=other))[1]
    except MixerEquivError:  # such as tensors made under torch.inference_mode, into which nothing can be written
        return None
    if (distance := _apart(last, expected)) <= subject.tolerance:
        return None
    return Breach(
        "memory",
        "what was made of earlier weights or images",
        "what the weights and images are now",
        "call 2",
        f"off by {distance:.1e} after weights and images were written over in place, as optimizers and loaders do",
    )


# From random numbers and a shape (1, height, width, channels) to an image.
Kind = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# The kinds whose numbers are far from 1, so that a limit is reached.
FAR = ("of whole numbers up to 255", "of some hundreds")

KINDS: Mapping[str, Kind] = {
    "of zero mean": lambda rng, shape: rng.standard_normal(shape),
    "in [0, 1]": lambda rng, shape: rng.uniform(0, 1, shape),
    "that are black": lambda rng, shape: np.zeros(shape),
    "of whole numbers up to 255": lambda rng, shape: rng.integers(0, 256, shape).astype(np.float64),
    "below 0": lambda rng, shape: -rng.uniform(0.1, 3, shape),
    "of some hundreds": lambda rng, shape: 300 * rng.standard_normal(shape),
    "near 0": lambda rng, shape: 1e-3 * rng.standard_normal(shape),
    "that are grey": lambda rng, shape: np.broadcast_to(rng.uniform(0, 1, (*shape[:-1], 1)), shape).copy(),
    "cut off at 0 and 1": lambda rng, shape: np.clip(rng.normal(0.5, 0.5, shape), 0, 1),
    "with black and white bars": lambda rng, shape: _with_bars(rng.uniform(0, 1, shape)),
}


def _with_bars(images: np.ndarray) -> np.ndarray:
    """Images (batch, height, width, channels) whose upper half is black, and the left half of the lower one white."""
    _, height, width, _ = images.shape
    images[:, : math.ceil(height / 2)] = 0
    images[:, height // 2 :, : math.ceil(width / 2)] = 1
    return images


# Kinds for models that take long.
FEW_KINDS = ("of zero mean", "in [0, 1]", "that are black", "of whole numbers up to 255")

# Images to outputs (images, classes): what a model is expected to compute.
Expected = Callable[[np.ndarray], np.ndarray]


def find_branches(
    subject: Subject,
    expected: Expected,
    shape: tuple[int, ...],
    seed: int,
    kinds: Collection[str] = tuple(KINDS),
    *,
    decides: bool,
) -> Breach | None:
    """A breach where images of one of the `kinds`, of this shape (1, height, width, channels), give something else.

    Large images may reach a limit, if the model does not decide on numbers of the images.
    """
    rng = np.random.default_rng([seed, 4])
    images = [KINDS[kind](rng, shape) for kind in kinds]
    apart = [
        (residual(row, expected(image)), kind)
        for kind, image, row in zip(kinds, images, subject.rows(*images), strict=True)
    ]
    over = [found for found in apart if not found[0] <= ROW_TOLERANCE]
    if not over:
        return None
    distance, kind = max(over)
    if not decides and all(kind in FAR for _, kind in over):
        return _limit("large", distance, f"for images {kind}")
    return Breach(
        "branch",
        f"something else for images {' and '.join(kind for _, kind in over)}",
        "the same function for all images",
        f"{len(over)} of {len(apart)} kinds of images",
        f"off by {distance:.1e} for images {kind}",
    )


def branch_at_random(count: int, num_draws: int) -> Breach:
    """The breach of a model that was another function for some draws of weights and images, and not for others."""
    return Breach(
        "branch",
        "something else for some weights and images",
        "the same function for all",
        f"{count} of {num_draws} draws",
        "of weights and images",
    )


def departs(subject: Subject, expected: Expected, images: np.ndarray) -> bool:
    """Whether the rows for `images` are others than expected."""
    return not _distance(subject, expected, images) <= ROW_TOLERANCE


def _distance(subject: Subject, expected: Expected, images: np.ndarray) -> float:
    return residual(subject.rows(images)[0], expected(images))


def find_limits(subject: Subject, expected: Expected, images: np.ndarray, size: str, where: str) -> Breach | None:
    """A breach where weights, which `subject` draws, and `images` of this `size` reach what usual ones do not."""
    distance = _distance(subject, expected, images)
    return None if distance <= ROW_TOLERANCE else _limit(size, distance, where)


def find_fresh(subject: Subject, expected: Expected, images: np.ndarray) -> Breach | None:
    """A breach where weights, which `subject` draws, are as a model is made with."""
    distance = _distance(subject, expected, images)
    if distance <= ROW_TOLERANCE:
        return None
    found = "something else where LayerNorms and biases are as they are made, of ones and zeros"
    return Breach("branch", found, "the same function for all weights", "fresh weights", f"off by {distance:.1e}")


def _limit(size: str, distance: float, where: str) -> Breach:
    return Breach(
        "limit",
        f"something else where values are {size}",
        "the same function for all numbers",
        f"{size} values",
        f"off by {distance:.1e} {where}",
    )


def find_float32(
    subject: Subject, expected: Expected, images: np.ndarray, narrow: Collection[str], where: str
) -> Breach | None:
    """A breach where the model rounds in float32 what it does not in float64, or is another function there.

    `narrow` are the dtypes for which it asks in float64. Whether small errors are those of rounding is for the judge.
    """
    filled = subject.filled(images)
    trace = subject.model.trace(filled, subject.draw, np.float32, every=False)
    rows = subject.rows_of({path: trace.values[i].array for path, i in trace.outputs.items()}, len(filled))
    error = residual(rows[: len(images)], expected(images))
    narrower = sorted({name for name in trace.narrow_dtypes if not name.startswith("float")} - set(narrow))
    if not narrower and error <= FLOAT32_TOLERANCE:
        return None
    found = f"a rounding to {' and '.join(narrower)}" if narrower else f"an error of {error:.1e}"
    return Breach("float32", f"{found} in float32 alone", "the function that it is in float64", "outputs", where)


def _apart(row: np.ndarray, other: np.ndarray) -> float:
    if row.shape != other.shape:
        return float("inf")
    return 0.0 if np.array_equal(row, other, equal_nan=True) else residual(row, other)
