"""`windows_of`: patches that overlap or are padded, as a convolution with another stride or padding takes them."""

from __future__ import annotations

import itertools
import math
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
        is_square = size[0] == size[1]
        for rows, columns in itertools.product(_sides(height, size[0]), _sides(width, size[1])):
            tokens = _count(height, size[0], rows) * _count(width, size[1], columns)
            (down, top, bottom), (right, left, rest) = rows, columns
            is_plain = (down, right) == size and not any((top, bottom, left, rest))
            is_usual = not is_square or (down == right and (height != width or rows == columns))
            if is_usual and not is_plain and batch * tokens * hidden in trace.by_size:
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
    """Height and width of the kernel that is used first, from so many channels, and to how many it leads."""
    kernels = [operand for operand in trace.operands if operand.array.ndim == 4 and operand.leaves in trace.uses]
    first = min(kernels, key=lambda operand: trace.uses[operand.leaves][0], default=None)
    if first is not None:
        a, b, c, d = first.array.shape
        if b == channels:  # as in torch
            yield (c, d), a
        if c == channels:  # as in Flax
            yield (a, b), d


def _sides(length: int, size: int) -> list[Side]:
    """Strides and paddings along one axis: so many zeros before and after it, or those of the padding "SAME"."""
    sides = [(stride, zeros, zeros) for stride in range(1, size + 1) for zeros in range(size // 2 + 1)]
    for stride in range(1, size + 1):
        zeros = max((math.ceil(length / stride) - 1) * stride + size - length, 0)
        sides.append((stride, zeros // 2, zeros - zeros // 2))
    return [side for side in dict.fromkeys(sides) if length + side[1] + side[2] >= size]


def _count(length: int, size: int, side: Side) -> int:
    stride, before, after = side
    return (length + before + after - size) // stride + 1
