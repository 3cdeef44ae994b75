"""Arrays in chunks of bytes that fit the cache, copies that spare it, and work on several arrays at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")
Result = TypeVar("Result")

# Size of a chunk: it stays in a processor's cache between one use and the next.
CHUNK_BYTES = 2**20

# Worker threads, where arrays may be processed in any order.
THREADS = 2

# A transpose moves squares of TILE x TILE elements, through a buffer whose rows have PADDING more.
TILE, PADDING = 256, 16


def byte_chunks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of `array` in C order, in chunks of about `CHUNK_BYTES`.

    Each chunk is valid until the next is asked for. An array that is not in C order is copied chunk by
    chunk, never as a whole.
    """
    if array.flags.c_contiguous:
        flat = _bytes(array)
        yield from (flat[start : start + CHUNK_BYTES] for start in range(0, len(flat), CHUNK_BYTES))
        return
    rows = min(len(array), max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes)))
    buffer = np.empty((rows, *array.shape[1:]), array.dtype)
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        _copy_into(buffer[: len(part)], part)
        yield _bytes(buffer[: len(part)])


def contiguous_copy(array: np.ndarray) -> np.ndarray:
    """A new array of the same numbers in C order: `array.copy(order="C")`, but faster where axes are swapped."""
    out = np.empty(array.shape, array.dtype)
    _copy_into(out, array)
    return out


def as_contiguous(array: np.ndarray) -> np.ndarray:
    """`array` itself if it is in C order, else a copy that is."""
    return array if array.flags.c_contiguous else contiguous_copy(array)


def prefetch(keys: Iterable[Key], make: Callable[[Key], Result]) -> Iterator[tuple[Key, Result]]:
    """Each key and `make(key)`, computed in a thread that is one key ahead of the caller.

    NumPy's copies, checksums and file access release the interpreter's lock, so the caller may write one
    array while the next is read. Two values are alive, the caller's and the next, and three while the caller
    takes the next. An exception of `make` is raised when its value is taken.
    """
    waiting: deque[tuple[Key, Future[Result]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for key in keys:
            waiting.append((key, pool.submit(make, key)))
            if len(waiting) > 1:
                yield _take_first(waiting)
        while waiting:
            yield _take_first(waiting)


def group_by_size(sizes: Mapping[Key, int], limit: int) -> list[list[Key]]:
    """The keys in order, in lists whose sizes add up to at most `limit`; a larger one is a list of its own."""
    groups: list[list[Key]] = []
    room = 0
    for key, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(key)
        room -= size
    return groups


def map_in_threads(keys: Sequence[Key], work: Callable[[Key], Result]) -> list[Result]:
    """`work(key)` for each key, in order, computed by `THREADS` threads.

    The exception of the first key that fails is raised, and no further work is begun.
    """
    if len(keys) < 2:
        return [work(key) for key in keys]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, keys))


def _take_first(waiting: deque[tuple[Key, Future[Result]]]) -> tuple[Key, Result]:
    key, value = waiting.popleft()
    return key, value.result()


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _copy_into(out: np.ndarray, source: np.ndarray) -> None:
    """`out[...] = source`, both of one shape and dtype.

    Rows of a kernel are often a power of two of bytes apart. The elements of a column then share few sets of
    the cache, and reading along it evicts data before it is used. Where two axes are swapped, each square
    is therefore first copied, row by row, into a buffer whose padded rows are not aligned so.
    """
    out, source = out.squeeze(), source.squeeze()
    if source.ndim != 2 or abs(source.strides[0]) >= abs(source.strides[1]):
        np.copyto(out, source)
        return
    buffer = np.empty((TILE, TILE + PADDING), source.dtype)
    for top in range(0, source.shape[0], TILE):
        for left in range(0, source.shape[1], TILE):
            square = source[top : top + TILE, left : left + TILE].T
            between = buffer[: square.shape[0], : square.shape[1]]
            np.copyto(between, square)
            np.copyto(out[top : top + TILE, left : left + TILE], between.T)
