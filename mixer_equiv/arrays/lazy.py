"""Arrays by name that are made when they are used: read from a file, converted, cast, in stacks."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.chunks import PIECE, ahead, batches, contiguous, copied, spread
from mixer_equiv.arrays.interop import is_array, stored_dtype, to_numpy
from mixer_equiv.errors import ConversionError


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array whose numbers need not be read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes these take."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred:
    """An array of known shape and dtype, which `make` makes, in any strides, each time it is used."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, each made NumPy's when it is asked for, and not kept; `specs` reads none of them.

    `leaves` are arrays of any framework, of files, and `Deferred`; `shapes` are given to them, where
    they say so. Arrays are given in C order, by `strided` in whatever order they have.
    """

    def __init__(self, leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.leaves = {name: leaf if is_array(leaf) else to_numpy(name, leaf) for name, leaf in leaves.items()}
        shapes = shapes or {}
        self.specs = {
            name: Spec(shapes.get(name, tuple(leaf.shape)), stored_dtype(name, leaf))
            for name, leaf in self.leaves.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return contiguous(self.strided(name))

    def strided(self, name: str) -> np.ndarray:
        """The array without a copy to bring it into C order."""
        return to_numpy(name, self.leaves[name]).reshape(self.specs[name].shape)

    def renamed(self, names: Mapping[str, str]) -> LazyArrays:
        """The same arrays by the names that `names` gives for theirs, and those that it has no name for not at all."""
        return LazyArrays(
            {new: self.leaves[old] for old, new in names.items()},
            {new: self.specs[old].shape for old, new in names.items()},
        )

    def __contains__(self, name: object) -> bool:
        return name in self.leaves  # without it, Mapping would read the array to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)


def as_lazy(arrays: Mapping[str, Any]) -> LazyArrays:
    """`arrays` themselves if they are lazy already."""
    return arrays if isinstance(arrays, LazyArrays) else LazyArrays(arrays)


def settled(lazy: LazyArrays, like: Mapping[str, Any], *, copy: bool = True) -> Mapping[str, np.ndarray]:
    """`lazy` itself if `like` is lazy, else its arrays: new ones in C order, or without `copy` as they come."""
    if isinstance(like, LazyArrays):
        return lazy
    return gathered(lazy, (lambda name: copied(lazy.strided(name))) if copy else lazy.strided)


def gathered(lazy: LazyArrays, make: Callable[[str], np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """All of the arrays, or what `make` gives for their names, where they are large several at a time."""
    make = make or lazy.__getitem__
    groups = batches({name: spec.nbytes for name, spec in lazy.specs.items()}, PIECE)
    made = spread(groups, lambda names: [make(name) for name in names])
    return dict(zip(lazy, itertools.chain.from_iterable(made), strict=True))


def specs(arrays: Mapping[str, np.ndarray]) -> Mapping[str, Spec]:
    """Shape and dtype of each of `arrays`."""
    if isinstance(arrays, LazyArrays):
        return arrays.specs
    return {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}


def each(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays, these in any strides; what has to be made is, while the caller works on the one before."""
    lazy = as_lazy(arrays)
    if all(isinstance(leaf, np.ndarray) for leaf in lazy.leaves.values()):
        return ((name, lazy.strided(name)) for name in lazy)
    return ahead(lazy, lazy.strided)


_PLACES = re.compile(r"(?:\[\d+\])+$")


class _Stack:
    """An array of which parts are read one after another: kept from the first to the last of them."""

    def __init__(self, name: str, leaf: Any, parts: int) -> None:
        self.name, self.leaf, self.parts = name, leaf, parts
        self._whole: np.ndarray | None = None
        self._left = parts
        self._lock = threading.Lock()

    def read(self, place: tuple[int, ...]) -> np.ndarray:
        """What stands at a place of it."""
        with self._lock:
            whole = to_numpy(self.name, self.leaf) if self._whole is None else self._whole
            self._left -= 1
            if not self._left:
                self._whole, self._left = None, self.parts
            else:
                self._whole = whole
        return whole[place]


def split(leaves: Mapping[str, Any], depth_of: Callable[[str], int]) -> dict[str, Any]:
    """`leaves` with each stack taken apart: for "kernels" the parts "kernels[0]", "kernels[1]".

    `depth_of` gives the number of axes that count a stack's parts, 0 for what is none.
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
            part = Deferred(shape, dtype, partial(stack.read, place))
            result[name + "".join(f"[{i}]" for i in place)] = part
    return result


def joined(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The inverse of `split`: arrays called "kernels[0]", "kernels[1]" in one called "kernels".

    They are lazy if `arrays` are. Raises `ConversionError` where a part is missing, or is of another
    dtype than the others.
    """
    result: dict[str, Any] = {}
    stacks: dict[str, dict[tuple[int, ...], str]] = {}
    lazy = as_lazy(arrays)
    for name in lazy:
        places = _PLACES.search(name)
        if places is None:
            result[name] = lazy.leaves[name]
        else:
            place = tuple(map(int, re.findall(r"\d+", places[0])))
            stacks.setdefault(name[: places.start()], {})[place] = name
    for name, parts in stacks.items():
        result[name] = _stacked(name, parts, lazy)
    return LazyArrays(result) if lazy is arrays else {name: np.asarray(leaf) for name, leaf in result.items()}


def _stacked(name: str, parts: Mapping[tuple[int, ...], str], arrays: LazyArrays) -> Deferred:
    """The stack of the arrays called `parts`, by their places in it."""
    sizes = tuple(max(numbers) + 1 for numbers in zip(*parts, strict=True))
    absent = [place for place in np.ndindex(*sizes) if place not in parts]
    if absent:
        raise ConversionError(f"{name} cannot be stacked: {name}{''.join(f'[{i}]' for i in absent[0])} is missing")
    specs = [arrays.specs[part] for part in parts.values()]
    dtypes = sorted({str(spec.dtype) for spec in specs})
    if len(dtypes) > 1:
        raise ConversionError(f"{name} cannot be stacked: its parts are of {' and '.join(dtypes)}")
    shape = (*sizes, *specs[0].shape)
    in_order = [parts[place] for place in np.ndindex(*sizes)]
    return Deferred(shape, specs[0].dtype, lambda: np.stack([arrays.strided(p) for p in in_order]).reshape(shape))
