"""`Calls`: several calls of a model in a row, with nothing restored in between, and what each leaves for the next.

The recorders of torch and JAX make them. `move_on` changes what counts calls as if more had been made, so that a
condition on the thousandth call needs no thousand calls.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from mixer_equiv.equivalence.record.holders import ABSENT, Change
from mixer_equiv.equivalence.record.iterators import copied_count, count_of, iterator_of
from mixer_equiv.equivalence.record.trace import Draw

Outputs = Mapping[str, np.ndarray]

# A model of JAX: from parameters by name, images, and what the last call kept, to the result and what this call keeps.
Function = Callable[[Mapping[str, Any], Any, Any], tuple[Any, Any]]

# The most elements that are appended to a list in the place of calls.
_LONGEST = 10_000


@dataclasses.dataclass(frozen=True)
class Calls:
    """The results of each call by their paths, and the paths of what the calls changed in the model.

    `written` are all that stays; `counted` are those of them that are no tensor made anew by each call, as of features
    that a model keeps for others to look at. `overwritten` are the paths of earlier results, and `IMAGES`, where a
    call wrote into these.
    """

    outputs: tuple[Outputs, ...]
    written: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()
    overwritten: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to call a model that changes nothing of its function.

    `name` is for reports. Before the last call in a row, weights of `rewritten` are written into the parameters, and
    its images into those of the call before, as optimizers and loaders do that keep their tensors.
    """

    name: str = ""
    rewritten: Draw | None = None


PLAIN = Way()

# Stands among what is overwritten for the images that a call is given.
IMAGES = "images"


class CallLog:
    """What `num_calls` calls in a row give and change; before the last, what counts them is moved on by `skipped`."""

    def __init__(self, num_calls: int, skipped: int) -> None:
        self._num_calls, self._skipped = num_calls, skipped
        self._outputs: list[Outputs] = []
        self._written: dict[str, None] = {}
        self._counted: dict[str, None] = {}
        self._overwritten: dict[str, None] = {}

    @property
    def is_before_last(self) -> bool:
        """Whether one call is left."""
        return len(self._outputs) == self._num_calls - 1

    def lose(self, what: str) -> None:
        """Note something of the caller's that a call wrote into."""
        self._overwritten[what] = None

    def add(self, outputs: Outputs, set_anew: Collection[Change], overwritten: Collection[Change]) -> None:
        """Add a call, the attributes and elements that it set, and the arrays that it wrote into."""
        changes = [*set_anew, *overwritten]
        self._outputs.append(outputs)
        self._written |= dict.fromkeys(change.path for change in changes)
        counted = [*(change for change in set_anew if not _is_made_anew(change.now)), *overwritten]
        self._counted |= dict.fromkeys(change.path for change in counted)
        if self._skipped and self.is_before_last:
            move_on(changes, self._skipped)

    def calls(self) -> Calls:
        return Calls(tuple(self._outputs), tuple(self._written), tuple(self._counted), tuple(self._overwritten))


def move_on(changes: Iterable[Change], calls: int) -> None:
    """Move what one call changed on, as if so many more `calls` had changed it in the same way."""
    for change in changes:
        if change.write is not None and (moved := _moved(change.before, change.now, calls)) is not None:
            change.write(moved)


def _moved(before: Any, now: Any, calls: int) -> Any:
    """The value after more calls; None where it does not count them."""
    if isinstance(before, list) and isinstance(now, list):
        added = now[len(before) :]
        return [*now, *added * calls] if added and len(added) * calls <= _LONGEST else None
    if isinstance(iterator_of(before), itertools.count) and iterator_of(before) is not before:  # `__next__` of one
        moved = _moved(iterator_of(before), iterator_of(now), calls)
        return None if moved is None else moved.__next__
    if isinstance(before, itertools.count) and isinstance(now, itertools.count):
        (then, step), (reached, _) = count_of(before), count_of(now)
        return copied_count(now, ahead=calls * round((reached - then) / step))
    if not (_is_number(before) and _is_number(now)):
        return None
    if isinstance(now, np.ndarray) and now.dtype.kind in "iu":  # which goes round where it overflows
        then, reached = before.astype(np.int64), now.astype(np.int64)
        return (reached + calls * (reached - then)).astype(now.dtype)
    moved = now + calls * (now - before)
    is_finite = np.isfinite(moved).all() if isinstance(moved, np.ndarray) else math.isfinite(moved)
    return moved if is_finite else None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or value is ABSENT:
        return False
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf"
    return isinstance(value, int | float) or (_is_array(value) and math.prod(value.shape) == 1 and _counts(value))


def _counts(array: Any) -> bool:
    return any(kind in str(array.dtype) for kind in ("int", "float"))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_made_anew(value: Any) -> bool:
    """Whether it is an array of more than one element, or holds nothing else."""
    if isinstance(value, np.ndarray):  # which a snapshot shows only where its elements are written
        return False
    if _is_array(value):
        return math.prod(value.shape) != 1
    return isinstance(value, tuple) and bool(value) and all(map(_is_made_anew, value))
