"""Stacks: arrays whose first axes count parameters, as `nn.scan` makes them, or copies, as for several devices.

A part's name has its place in the stack behind it: "kernels[0]", "kernels[1]".
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import is_array, stored_dtype, to_numpy
from mixer_equiv.arrays.lazy import Deferred, LazyArrays, as_lazy, materialize
from mixer_equiv.errors import ConversionError

_PLACE = re.compile(r"(?:\[\d+\])+$")


class _Stack:
    """A stack that is read once for all of its parts, and kept from the first part asked for to the last."""

    def __init__(self, name: str, leaf: Any, parts: int) -> None:
        self.name, self.leaf, self.parts = name, leaf, parts
        self._whole: np.ndarray | None = None
        self._left = parts
        self._lock = threading.Lock()

    def read(self, place: tuple[int, ...]) -> np.ndarray:
        """The part at `place`."""
        with self._lock:
            whole = to_numpy(self.name, self.leaf) if self._whole is None else self._whole
            self._left -= 1
            if not self._left:
                self._whole, self._left = None, self.parts
            else:
                self._whole = whole
        return whole[place]


def split_stacks(leaves: Mapping[str, Any], depth_of: Callable[[str], int]) -> dict[str, Any]:
    """`leaves` with each stack replaced by its parts: "kernels" by "kernels[0]", "kernels[1]".

    `depth_of` gives the number of an array's axes that count parts, 0 for an array that is no stack.
    """
    result: dict[str, Any] = {}
    for name, leaf in leaves.items():
        depth = depth_of(name) if is_array(leaf) and len(leaf.shape) >= depth_of(name) else 0
        if not depth:
            result[name] = leaf
            continue
        places = list(np.ndindex(*leaf.shape[:depth]))
        stack = _Stack(name, leaf, len(places))
        shape, dtype = tuple(leaf.shape)[depth:], stored_dtype(name, leaf)
        for place in places:
            result[name + _suffix(place)] = Deferred(shape, dtype, partial(stack.read, place))
    return result


def join_stacks(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The inverse of `split_stacks`: "kernels[0]" and "kernels[1]" become one array called "kernels".

    The result is lazy if `arrays` is. Raises `ConversionError` where a part is missing, or is of another
    dtype than the others.
    """
    result: dict[str, Any] = {}
    stacks: dict[str, dict[tuple[int, ...], str]] = {}
    lazy = as_lazy(arrays)
    for name in lazy:
        suffix = _PLACE.search(name)
        if suffix is None:
            result[name] = lazy.leaves[name]
        else:
            place = tuple(map(int, re.findall(r"\d+", suffix[0])))
            stacks.setdefault(name[: suffix.start()], {})[place] = name
    for name, parts in stacks.items():
        result[name] = _stack(name, parts, lazy)
    return materialize(LazyArrays(result), like=arrays, copy=False)


def first_copy(name: str, leaf: Any) -> Deferred:
    """The first of the equal arrays along the first axis of `leaf`, as `pmap` keeps one for each device.

    Reading it raises `ConversionError` if they are not equal in every bit.
    """
    count, *shape = leaf.shape

    def read() -> np.ndarray:
        copies = to_numpy(name, leaf)
        first = copies[0].tobytes()
        differing = [i for i in range(1, count) if copies[i].tobytes() != first]
        if differing:
            raise ConversionError(
                f"{name} has {count} arrays along its first axis, as of {count} devices, but number {differing[0]} is "
                "not equal to number 0; take one yourself, such as {name: array[0] for name, array in arrays.items()}"
            )
        return copies[0]

    return Deferred(tuple(shape), stored_dtype(name, leaf), read)


def _stack(name: str, parts: Mapping[tuple[int, ...], str], arrays: LazyArrays) -> Deferred:
    """The stack of the arrays that `parts` names by their places."""
    sizes = tuple(max(numbers) + 1 for numbers in zip(*parts, strict=True))
    absent = [place for place in np.ndindex(*sizes) if place not in parts]
    if absent:
        raise ConversionError(f"{name} cannot be stacked: {name}{_suffix(absent[0])} is missing")
    specs = [arrays.specs[part] for part in parts.values()]
    dtypes = sorted({str(spec.dtype) for spec in specs})
    if len(dtypes) > 1:
        raise ConversionError(f"{name} cannot be stacked: its parts are of {' and '.join(dtypes)}")
    shape = (*sizes, *specs[0].shape)
    in_order = [parts[place] for place in np.ndindex(*sizes)]
    return Deferred(shape, specs[0].dtype, lambda: np.stack([arrays.strided(p) for p in in_order]).reshape(shape))


def _suffix(place: tuple[int, ...]) -> str:
    return "".join(f"[{i}]" for i in place)
