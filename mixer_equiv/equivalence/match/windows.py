"""`windows_of`: patches that overlap or are padded, as a convolution with another stride or padding takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mixer_equiv.equivalence.deviation import Windows
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.operations import Array

Side = tuple[int, int, int]  # stride, and zeros before and after


def windows_of(images: Array, trace: Trace) -> Iterator[tuple[Windows, Array]]:
    """Windows of (batch, height, width, channels) for which there are a kernel and a result, and what is in them.

    The latter is (batch, tokens, height, width, channels). Patches side by side are left aside.
    """
    batch, height, width, channels = images.shape
    for size, hidden in _kernels(channels, trace):
        for rows, columns in itertools.product(_sides(height, size[0]), _sides(width, size[1])):
            tokens = _count(height, size[0], rows) * _count(width, size[1], columns)
            (down, top, bottom), (right, left, rest) = rows, columns
            is_plain = (down, right) == size and not any((top, bottom, left, rest))
            if batch * tokens * hidden in trace.by_size and not is_plain:
                windows = Windows(size, (down, right), (top, left), (bottom, rest))
                yield windows, take(images, windows)


def take(images: Array, windows: Windows) -> Array:
    """The windows of (batch, height, width, channels), by rows: (batch, tokens, height, width, channels)."""
    padding = zip((0, *windows.before, 0), (0, *windows.after, 0), strict=True)
    every = sliding_window_view(np.pad(images, list(padding)), windows.size, axis=(1, 2))
    down, right = windows.stride
    kept = every[:, ::down, ::right].transpose(0, 1, 2, 4, 5, 3)
    return kept.reshape(len(images), -1, *kept.shape[3:])


def _kernels(channels: int, trace: Trace) -> Iterator[tuple[tuple[int, int], int]]:
    """Heights and widths of kernels of convolutions from so many channels, and to how many."""
    shapes = dict.fromkeys(operand.array.shape for operand in trace.operands if operand.array.ndim == 4)
    for a, b, c, d in shapes:
        found = {(c, d): a} if b == channels else {(a, b): d} if c == channels else {}  # as in torch, or as in Flax
        yield from found.items()


def _sides(length: int, size: int) -> Iterator[Side]:
    """Strides and paddings along one axis, the same before and after it or, as for "SAME", one more after it."""
    for stride, before in itertools.product(range(1, size + 1), range(size)):
        for after in (before, before + 1):
            if after < size and length + before + after >= size:
                yield stride, before, after


def _count(length: int, size: int, side: Side) -> int:
    stride, before, after = side
    return (length + before + after - size) // stride + 1
