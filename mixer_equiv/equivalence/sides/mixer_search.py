"""`search`: the Mixer in somebody else's model, sought with several weights, batches and seeds.

What is found is then put on trial by `coverage.py`: a search follows one run, and says nothing of others.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.equivalence.mixer.find import find_mixer
from mixer_equiv.equivalence.mixer.result import Found, FoundMixer, NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.sides.base import NotAMixer
from mixer_equiv.equivalence.sides.coverage import cover
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic, usual_images
from mixer_equiv.equivalence.sides.run_errors import RunError, asking_for_image
from mixer_equiv.errors import summarize

# A model is searched with two images, so that none is taken for all of them; with one where that alone gives a
# Mixer, as for a model with a loop over images.
BATCHES = (2, 1)


def search(model: ForeignModel, image: tuple[int, int, int], seed: int) -> ForeignSide | NotAMixer:
    """Search a model that takes images of (channels, height, width) for a Mixer, which two seeds must find alike.

    Raises `MixerEquivError` for a model that cannot be run.
    """
    with asking_for_image(image):
        attempt, found = _with_either_axes(model, image, seed)
    found = attempt.confirmed(found)
    return NotAMixer(model.name, found) if isinstance(found, NothingFound) else ForeignSide(attempt.model, found)


def _with_either_axes(model: ForeignModel, image: tuple[int, int, int], seed: int) -> tuple[_Search, Found]:
    """The likeliest search of a model, called on images (batch, height, width, channels) where it raises on others."""
    try:
        return _likeliest(_Search(model, image, seed))
    except RunError:
        if model.as_nhwc is not None:
            with contextlib.suppress(RunError):
                return _likeliest(_Search(model.as_nhwc(), image, seed))
        raise


def _likeliest(first: _Search) -> tuple[_Search, Found]:
    """The search that leads nearest to the official function.

    Constant tensors, such as buffers, may be what they are in every checkpoint, or hold weights. They keep their
    values first, and are drawn as parameters where the model is not official with these.
    """
    attempts = [(first, first.best())]
    found = attempts[0][1]
    for names in _weights_among_constants(first.model, found) if _departures(found) else ():
        other = dataclasses.replace(first, model=first.model.drawn(names))
        attempts.append((other, other.best()))
        if not _departures(attempts[-1][1]):
            break
    return min(attempts, key=lambda attempt: _departures(attempt[1]))


def _weights_among_constants(model: ForeignModel, found: Found) -> Iterator[list[str]]:
    """Names of constant tensors that may hold weights: all, then those whose elements are not all the same number."""
    met = {
        name: held for name, held in model.constants.items() if name in found.constants or not model.labels_constants
    }
    values = {name: np.asarray(to_numpy(name, held)) for name, held in met.items()}
    names = [name for name, array in values.items() if array.dtype.kind not in "biu"]
    varied = [name for name in names if np.ptp(values[name].astype(np.float64)) > 0]
    yield from (some for some in ([names, varied] if varied != names else [names]) if some)


def _departures(found: Found) -> int:
    """How far a result is from the official function: 0 for one under some conventions, without constraints."""
    if isinstance(found, NothingFound):
        return 10_000 - len(found.known)
    return 0 if found.is_by_convention and not found.constraints else 1 + len(found.deviations) + len(found.constraints)


@dataclasses.dataclass(frozen=True)
class _Search:
    model: ForeignModel
    image: tuple[int, int, int]
    seed: int

    def best(self) -> Found:
        """The result for the batch that gives most."""
        best = self._once(self.seed, BATCHES[0], thorough=False)
        if not best.is_settled or _departures(best):
            other = self._once(self.seed, BATCHES[1], thorough=False)
            best = min((best, other), key=_departures)
        return best if best.is_settled else self._once(self.seed, best.batch)

    def confirmed(self, found: Found) -> Found:
        """The result after all trials, and after another search with other weights where there may be two answers."""
        if found.exits and not found.is_settled:
            return _not_followed(found)
        found = cover(self.model, found, self.image, self.seed)
        if isinstance(found, NothingFound) or found.is_by_convention:
            return found  # running it on other weights, beside a model of its config, is the second opinion
        again = self._once(self.seed + 1, found.batch)
        if isinstance(again, NothingFound) or _finding(found) != _finding(again):
            return found.refused(f"{self.model.name} is one thing with some weights and another with others")
        return found

    def _once(self, seed: int, batch: int, *, thorough: bool = True) -> Found:
        images = usual_images(self.image, seed, batch)
        trace = self.model.trace(images, generic(seed))
        found = find_mixer(trace, images, self.model.name, self.model.framework, thorough=thorough)
        return found.noting(*self.model.notices, *map(Notice, trace.notices))


def _not_followed(found: Found) -> NothingFound:
    """Nothing is shown of a model that makes something of its numbers where they cannot be followed."""
    places = summarize(found.exits, 2)
    reason = f"numbers of the images leave the framework, and what is made of them cannot be followed: {places}"
    return dataclasses.replace(found.refused(reason), deviations=(), is_blind=True)


def _finding(found: FoundMixer) -> tuple[Any, ...]:
    return found.layout, found.config, found.deviations
