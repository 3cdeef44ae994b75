"""Arrays as streams of bytes, in pieces that stay in the cache, and several of them at work at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")
Value = TypeVar("Value")

# Bytes that are handed on at once.
PIECE = 2**20

# How many arrays are at work at a time, where their order is all the same.
THREADS = 2

# Sides of the square that a transpose moves at once, and numbers left free after each row of the buffer between.
TILE, FREE = 256, 16


def pieces(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of `array` in C order, in pieces of about `PIECE` bytes.

    Each is good until the next is asked for. An array that is in another order is never copied as a
    whole, but only one piece at a time.
    """
    if array.flags.c_contiguous:
        flat = _bytes(array)
        yield from (flat[start : start + PIECE] for start in range(0, len(flat), PIECE))
        return
    rows = min(len(array), max(1, PIECE * len(array) // max(1, array.nbytes)))
    buffer = np.empty((rows, *array.shape[1:]), array.dtype)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        _fill(buffer[: len(part)], part)
        yield _bytes(buffer[: len(part)])


def copied(array: np.ndarray) -> np.ndarray:
    """A new array of the same numbers in C order: `array.copy(order="C")`, the faster where axes are swapped."""
    out = np.empty(array.shape, array.dtype)
    _fill(out, array)
    return out


def contiguous(array: np.ndarray) -> np.ndarray:
    """`array` itself if it is in C order, else a copy that is."""
    return array if array.flags.c_contiguous else copied(array)


def ahead(keys: Iterable[Key], make: Callable[[Key], Value]) -> Iterator[tuple[Key, Value]]:
    """Each key and what `make` makes of it, in a thread that is one ahead of the caller.

    NumPy's copies, CRCs and files let other threads run, so that the caller may write one array while
    the next is read. Two values are alive, the caller's and the next; while the caller takes the next,
    three. What `make` raises is raised here.
    """
    waiting: deque[tuple[Key, Future[Value]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for key in keys:
            waiting.append((key, pool.submit(make, key)))
            if len(waiting) > 1:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)


def batches(sizes: Mapping[Key, int], limit: int) -> list[list[Key]]:
    """Keys in their order, each list as long as its sizes add up to `limit` at most; what is larger stands alone."""
    filled: list[list[Key]] = []
    room = 0
    for key, size in sizes.items():
        if not filled or size > room:
            filled.append([])
            room = limit
        filled[-1].append(key)
        room -= size
    return filled


def spread(keys: Sequence[Key], work: Callable[[Key], Value]) -> list[Value]:
    """What `work` makes of each key, `THREADS` of them at a time.

    What it raises for the first of them that fails is raised here, and no more are begun then.
    """
    if len(keys) < 2:
        return [work(key) for key in keys]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, keys))


def _first(waiting: deque[tuple[Key, Future[Value]]]) -> tuple[Key, Value]:
    key, value = waiting.popleft()
    return key, value.result()


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _fill(out: np.ndarray, source: np.ndarray) -> None:
    """`out[...] = source`, both of one shape and dtype.

    Rows of a kernel are often a power of two of bytes apart, so that a column of it falls into few
    sets of the cache, and reading along it evicts what is needed next. Where two axes are swapped, a square is
    therefore copied first, row by row, into a buffer whose rows are not.
    """
    out, source = out.squeeze(), source.squeeze()
    if source.ndim != 2 or abs(source.strides[0]) >= abs(source.strides[1]):
        np.copyto(out, source)
        return
    buffer = np.empty((TILE, TILE + FREE), source.dtype)
    for top in range(0, source.shape[0], TILE):
        for left in range(0, source.shape[1], TILE):
            square = source[top : top + TILE, left : left + TILE].T
            between = buffer[: square.shape[0], : square.shape[1]]
            np.copyto(between, square)
            np.copyto(out[top : top + TILE, left : left + TILE], between.T)
