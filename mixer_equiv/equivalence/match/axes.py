"""Orders of an array's axes and of its elements: those in which an array of the trace can be a given array.

Nothing here knows operations or traces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mixer_equiv.operations import Array


def axis_orders(sizes: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Orders of axes of these `sizes` that reshape to an array of this `shape`; axes of size 1 are left aside."""
    kept = tuple(size for size in shape if size != 1)
    for order in itertools.permutations(range(len(sizes))):
        if _can_reshape(tuple(sizes[i] for i in order), kept):
            yield order


def _can_reshape(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether neighbours among `sizes` can be joined to `shape`, or neighbours in `shape` to `sizes`."""
    fine, coarse = ({1, *itertools.accumulate(numbers, lambda a, b: a * b)} for numbers in (sizes, shape))
    return fine >= coarse or coarse >= fine


def reorder_axes(array: Array, sizes: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Bring an array whose axes follow in this `order` into the order of `sizes`."""
    return array.reshape([sizes[i] for i in order]).transpose(np.argsort(order))


def axis_permutations(array: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """`array`, without axes of size 1, in every order of its axes that gives it this `shape`."""
    array = array.squeeze()
    for order in itertools.permutations(range(array.ndim)) if array.ndim == len(shape) else ():
        if tuple(array.shape[i] for i in order) == shape:
            yield array.transpose(order)


def locate_elements(array: Array, target: Array) -> Array:
    """The places in `array`, flat, of the elements of `target`, which has the same elements in another order."""
    places = np.empty(target.size, np.intp)
    places[np.argsort(target, axis=None)] = np.argsort(array, axis=None)
    return places


def arrange_like(array: Array, known: Array, target: Array) -> Array:
    """Move the elements of `array` as those of `known` have to be moved to give `target`."""
    result = np.empty(target.size)
    result[np.argsort(target, axis=None)] = array.reshape(-1)[np.argsort(known, axis=None)]
    return result.reshape(target.shape)
