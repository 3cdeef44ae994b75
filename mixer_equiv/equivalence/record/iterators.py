"""Iterators of Python and itertools: the place where each is, and a copy that goes on from there.

An iterator tells its place by `__reduce__`, as for a pickle. From Python 3.14 on those of itertools do so no longer, so
that nobody can say whether they were used.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from types import GeneratorType, MethodWrapperType
from typing import Any

# What stands for the place of an iterator that does not tell it.
UNKNOWN = "unknown"


def may_be_iterator(value: Any) -> bool:
    """Whether it is worth while to ask for the `iterator_of` a value."""
    kind = type(value)
    return kind is MethodWrapperType or hasattr(kind, "__next__")


def iterator_of(value: Any) -> Iterator[Any] | None:
    """An iterator of Python or itertools, also that of which `value` is `__next__`; None for all else."""
    if type(value) is MethodWrapperType and value.__name__ == "__next__":
        value = value.__self__
    kind = type(value)
    is_plain = hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools")
    return value if is_plain and kind is not GeneratorType else None


def place_of(iterator: Any) -> Any:
    """A description that is another one once an iterator has been used, or `UNKNOWN`."""
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame
        return "done" if frame is None else f"{frame.f_lasti} {frame.f_locals!r}"
    if isinstance(iterator, itertools.count):
        return repr(iterator)
    reduced = _reduced(iterator)
    return UNKNOWN if reduced is None else _described(reduced[1:])


def copied_iterator(value: Any) -> Any:
    """A copy of an iterator that goes on from where it is, or of its `__next__`; the value itself if it has no copy."""
    iterator = iterator_of(value)
    if iterator is None:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            copied = _copied(iterator)
    except _HasNoCopy:
        return value
    if place_of(copied) != place_of(iterator):  # as of iterators of dicts, which are copied as lists
        return value
    return copied if value is iterator else copied.__next__


def copied_count(count: itertools.count[Any], ahead: int = 0) -> itertools.count[Any]:
    """A count that goes on from where this one is, or from some steps ahead."""
    start, step = count_of(count)
    return itertools.count(start + ahead * step, step)


def count_of(count: itertools.count[Any]) -> tuple[Any, Any]:
    """The next number of a count, and its step."""
    numbers = re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", repr(count))
    start, step = (*map(float if "." in repr(count) else int, numbers), 1)[:2]
    return start, step


def _reduced(iterator: Any) -> tuple[Any, ...] | None:
    """The function, arguments and state that make an iterator again, if it tells them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            reduced = iterator.__reduce__()
        except TypeError:
            return None
    return reduced if isinstance(reduced, tuple) else None


def _described(part: Any) -> Any:
    """What tells a part of an iterator's place from what it was."""
    if iterator_of(part) is not None or isinstance(part, GeneratorType):
        return place_of(part)
    if isinstance(part, range):
        return repr(part)
    if isinstance(part, tuple | list):
        return tuple(map(_described, part))
    return part if isinstance(part, str | bytes | int | float | bool | None) else id(part)


class _HasNoCopy(Exception):  # noqa: N818  # no error: the iterator itself is used
    pass


def _copied(part: Any) -> Any:
    """A copy of an iterator, or of what one is made of. Raises `_HasNoCopy` where a generator is in it."""
    if isinstance(part, itertools.count):
        return copied_count(part)
    if isinstance(part, tuple):
        return tuple(map(_copied, part))
    if iterator_of(part) is None and not isinstance(part, GeneratorType):
        return part
    reduced = _reduced(part)
    if reduced is None:
        raise _HasNoCopy
    make, arguments, *states = reduced
    copy = make(*_copied(arguments))
    for state in states:
        copy.__setstate__(_own(_copied(state)))
    return copy


def _own(state: Any) -> Any:
    """A state with lists of its own, to which a cycle appends."""
    if isinstance(state, tuple):
        return tuple(map(_own, state))
    return list(state) if isinstance(state, list) else state
