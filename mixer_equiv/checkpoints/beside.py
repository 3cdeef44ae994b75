"""Leaves that stand beside the weights in one dict, and are none: they are left out, with a note.

Start at `leave_out_data`, for what can be told, and at `leave_out_ignored`, for what the caller says.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import holds_numbers, is_array, stored_dtype
from mixer_equiv.checkpoints.names import Stripped
from mixer_equiv.errors import ConversionError, summarize

# The last part of the name of a single number that training scripts keep.
_METRIC = re.compile(
    r"((best|val|test|train|eval|max|min|last)_?)*"
    r"(acc(uracy)?|top|loss|score|metric|lr|learning_rate|epoch|step|iter(ation)?|time|temperature_schedule|perplexity)s?"
    r"[_@]?\d*"
)
# The last part of the name of the numbers by which a model scales its images.
_STATISTIC = re.compile(r"((pixel|image|img|input|norm|dataset|rgb|imagenet)_?)?(mean|std)s?")


class _Kind(NamedTuple):
    """A kind of leaves that are no weights: whether one is of it, by the last part of its name, and a note on them."""

    holds: Callable[[str, Any], bool]
    note: str


def _is_no_array(last: str, leaf: Any) -> bool:
    return not is_array(leaf) or not holds_numbers(leaf.dtype)


def _is_count(last: str, leaf: Any) -> bool:
    return _is_single(leaf) and stored_dtype("", leaf).kind in "bui"


def _is_metric(last: str, leaf: Any) -> bool:
    return _is_single(leaf) and _METRIC.fullmatch(last.lower()) is not None


def _is_statistic(last: str, leaf: Any) -> bool:
    """Whether a leaf has one number for each channel of images, whatever its axes of size 1."""
    is_vector = math.prod(leaf.shape) in (1, 3, 4) and max(leaf.shape, default=1) == math.prod(leaf.shape)
    return is_vector and _STATISTIC.fullmatch(last.lower()) is not None


def _is_single(leaf: Any) -> bool:
    return math.prod(leaf.shape) == 1 and len(leaf.shape) < 2


KINDS = (
    _Kind(_is_no_array, "left out, since no weights can be: {}"),
    _Kind(_is_count, "left out, since no weights can be: {}"),
    _Kind(_is_metric, "left out, as numbers that tell of training: {}"),
    _Kind(_is_statistic, "left out: {}, by which code scales its images; scale them in the same way before the model"),
)


def leave_out_data(leaves: Mapping[str, Any], parameters: Collection[str]) -> Stripped:
    """Leave out what cannot be a weight: leaves of no numbers, counts, metrics, and the mean and std of images.

    Those that have the name of one of `parameters` stay, so that an error tells what stands in its place, and so do
    metrics and statistics within a module of theirs, where they may be learned.
    """
    inside = tuple({re.sub(r"[^./]*$", "", name) for name in parameters})
    found: dict[str, list[str]] = {}
    for name, leaf in leaves.items():
        last = re.split(r"[./]", name)[-1]
        is_beside = name not in parameters and (
            not is_array(leaf) or not name.startswith(inside) or _is_count(last, leaf)
        )
        kind = next((kind for kind in KINDS if kind.holds(last, leaf)), None) if is_beside else None
        if kind is not None:
            found.setdefault(kind.note, []).append(name)
    left_out = {name for names in found.values() for name in names}
    notes = [note.format(summarize(names)) for note, names in found.items()]
    return Stripped({name: leaf for name, leaf in leaves.items() if name not in left_out}, notes)


class Ignored(NamedTuple):
    """Leaves without those that the caller's globs match, the names of these, and the globs that matched."""

    leaves: dict[str, Any]
    names: list[str]
    globs: set[str]


def leave_out_ignored(leaves: Mapping[str, Any], globs: Collection[str]) -> Ignored:
    """Leave out the leaves whose names any of `globs` matches."""
    if isinstance(globs, str):
        raise ConversionError(f"ignore is the string {globs!r}; it must be a list of globs: [{globs!r}]")
    matched = {glob: fnmatch.filter(leaves, glob) for glob in globs}
    names = dict.fromkeys(name for found in matched.values() for name in found)
    kept = {name: leaf for name, leaf in leaves.items() if name not in names}
    return Ignored(kept, list(names), {glob for glob, found in matched.items() if found})
