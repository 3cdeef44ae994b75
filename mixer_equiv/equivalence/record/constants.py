"""`unrounded`: the number in the code behind a constant that is kept in a narrower float than a recorded pass has.

The rounding of a number in float32 is another number in float64, by up to 6e-8: a model would be another function in
float64 than in its own precision, for no reason in its code. Nothing here knows a framework.
"""

from __future__ import annotations

import math

import numpy as np

# Constants of activations: jax.nn.gelu rounds the roots to the dtype of its input.
_EXACT = (math.sqrt(2 / math.pi), math.sqrt(0.5), 0.044715, 1.702)

# The largest count of which 1 / count is told from other numbers, as in an average over tokens.
_LARGEST_COUNT = 100_000


def unrounded(held: np.ndarray) -> np.ndarray | None:
    """The array in float64, whose elements are one number in the code; None for any other array.

    The number is one of `_EXACT`, 1 / n, or the shortest decimal of which this is the rounding.
    """
    if not held.size or not np.isfinite(held).all() or (held != held.flat[0]).any():
        return None
    return np.full(held.shape, _number(held.dtype.type(held.flat[0])))


def _number(rounded: np.floating) -> float:
    value = float(rounded)
    for exact in (*_EXACT, *_reciprocal(abs(value))):
        if rounded.dtype.type(exact) == abs(rounded):
            return math.copysign(exact, value)
    return float(str(rounded))


def _reciprocal(value: float) -> tuple[float, ...]:
    is_one = 0 < value < 1 and 1 / value < _LARGEST_COUNT
    return (1 / round(1 / value),) if is_one else ()
