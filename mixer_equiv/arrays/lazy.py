"""Arrays by name that are computed at each use: read from a file, converted, cast.

`Deferred` is one such array, `LazyArrays` a mapping of them, and `materialize` computes a whole mapping.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.chunks import (
    CHUNK_BYTES,
    as_contiguous,
    contiguous_copy,
    group_by_size,
    map_in_threads,
    prefetch,
)
from mixer_equiv.arrays.interop import is_array, stored_dtype, to_numpy


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array, known without reading its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred:
    """An array of known shape and dtype that `make` computes at each use, with any strides."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.make(), dtype)


class LazyArrays(Mapping[str, np.ndarray]):
    """NumPy arrays by name, each converted when it is asked for and not kept; `specs` reads none of them.

    `leaves` are framework arrays, file-backed arrays or `Deferred`. `shapes` overrides a leaf's shape.
    Indexing returns C-contiguous arrays; `strided()` skips that copy.
    """

    def __init__(self, leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.leaves = {name: leaf if is_array(leaf) else to_numpy(name, leaf) for name, leaf in leaves.items()}
        shapes = shapes or {}
        self.specs = {
            name: Spec(shapes.get(name, tuple(leaf.shape)), stored_dtype(name, leaf))
            for name, leaf in self.leaves.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return as_contiguous(self.strided(name))

    def strided(self, name: str) -> np.ndarray:
        """The array in whatever order its elements are."""
        return to_numpy(name, self.leaves[name]).reshape(self.specs[name].shape)

    def rename(self, names: Mapping[str, str]) -> LazyArrays:
        """The arrays whose names are keys of `names`, under the values of these."""
        return LazyArrays(
            {new: self.leaves[old] for old, new in names.items()},
            {new: self.specs[old].shape for old, new in names.items()},
        )

    def __contains__(self, name: object) -> bool:
        return name in self.leaves  # Mapping's own would read the array to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)


def as_lazy(arrays: Mapping[str, Any]) -> LazyArrays:
    """`arrays` as `LazyArrays`: the same object if it is one already."""
    return arrays if isinstance(arrays, LazyArrays) else LazyArrays(arrays)


def materialize(
    arrays: LazyArrays, like: Mapping[str, Any] | None = None, *, copy: bool | None = None
) -> Mapping[str, np.ndarray]:
    """A dict of all `arrays`, several large ones computed at a time; `arrays` itself if `like` is lazy.

    `copy` follows NumPy: True gives new arrays in C order, None copies only what is not in C order, and False
    copies nothing and keeps every array's strides.
    """
    if isinstance(like, LazyArrays):
        return arrays

    def read(name: str) -> np.ndarray:
        array = arrays.strided(name)
        return array if copy is False else contiguous_copy(array) if copy else as_contiguous(array)

    groups = group_by_size({name: spec.nbytes for name, spec in arrays.specs.items()}, CHUNK_BYTES)
    results = map_in_threads(groups, lambda names: [read(name) for name in names])
    return dict(zip(arrays, itertools.chain.from_iterable(results), strict=True))


def specs_of(arrays: Mapping[str, np.ndarray]) -> Mapping[str, Spec]:
    """Shape and dtype of each of `arrays`; lazy ones are not computed."""
    if isinstance(arrays, LazyArrays):
        return arrays.specs
    return {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}


def prefetch_arrays(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays, these with any strides; while the caller works on one, the next is computed in a thread."""
    lazy = as_lazy(arrays)
    if all(isinstance(leaf, np.ndarray) for leaf in lazy.leaves.values()):  # nothing to compute
        return ((name, lazy.strided(name)) for name in lazy)
    return prefetch(lazy, lazy.strided)
