"""Orders of an array's axes and of its elements: in which ones an array of the trace can be a given array.

Nothing here knows operations or traces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mixer_equiv.operations import Array


def axis_orders(sizes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes of these sizes in which they make up an array of this shape, axes of size 1 aside."""
    kept = tuple(size for size in shape if size != 1)
    for order in itertools.permutations(range(len(sizes))):
        if _groups(tuple(sizes[i] for i in order), kept):
            yield order


def _groups(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether neighbours among `sizes` can be joined to `shape`, or neighbours in `shape` to `sizes`."""
    fine, coarse = ({1, *itertools.accumulate(numbers, lambda a, b: a * b)} for numbers in (sizes, shape))
    return fine >= coarse or coarse >= fine


def reorder_axes(array: Array, sizes: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """An array whose axes follow in this `order`, in the order of `sizes`."""
    return array.reshape([sizes[i] for i in order]).transpose(np.argsort(order))


def locate_elements(array: Array, meant: Array) -> Array:
    """Where in `array`, flat, each element of `meant` is, which has the same ones in another order."""
    places = np.empty(meant.size, np.intp)
    places[np.argsort(meant, axis=None)] = np.argsort(array, axis=None)
    return places


def arrange_like(array: Array, known: Array, meant: Array) -> Array:
    """`array` with its elements moved as those of `known` are to be the ones of `meant`."""
    result = np.empty(meant.size)
    result[np.argsort(meant, axis=None)] = array.reshape(-1)[np.argsort(known, axis=None)]
    return result.reshape(meant.shape)


def axis_permutations(array: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """`array` in every order of its axes that gives it this shape."""
    array = array.squeeze()
    for order in itertools.permutations(range(array.ndim)) if array.ndim == len(shape) else ():
        if tuple(array.shape[i] for i in order) == shape:
            yield array.transpose(order)
