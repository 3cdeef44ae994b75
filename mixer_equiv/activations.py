"""Activation functions of a Mixer's MLPs in NumPy float64, and their derivatives: `ACTIVATIONS` and `DERIVATIVES`.

They are written in other expressions than those of the frameworks, whose functions they are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np

Array = np.ndarray


def _swish(x: Array, slope: float | Array = 1.0) -> Array:
    """x * sigmoid(slope * x), with the limit 0 where exp overflows."""
    return x / (1 + np.exp(-slope * x))


def _gelu_tanh(x: Array) -> Array:
    # (1 + tanh(u)) / 2 is sigmoid(2u), with u = sqrt(2 / pi) * (x + 0.044715 x^3).
    return _swish(x, math.sqrt(8 / math.pi) * (1 + 0.044715 * x * x))


def _gelu(x: Array) -> Array:
    # The normal distribution function by erfc keeps its relative precision for negative x.
    return x / 2 * _erfc(-x / math.sqrt(2))


def _erfc(x: Array) -> Array:
    """The complementary error function, by SciPy where that repays its import, else by the standard library."""
    scipy = _scipy_erfc() if x.size >= MANY_ELEMENTS or np.iscomplexobj(x) else None
    return np.asarray(_MATH_ERFC(x), np.float64) if scipy is None else scipy(x)


# Importing SciPy takes as long as the standard library takes for a million elements; SciPy is five times as fast.
MANY_ELEMENTS = 100_000

_MATH_ERFC = np.frompyfunc(math.erfc, 1, 1)


@cache
def _scipy_erfc() -> Callable[[Array], Array] | None:
    """SciPy's erfc, which JAX depends on; None where it is not installed."""
    try:
        from scipy.special import erfc
    except ImportError:
        return None
    return erfc


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "silu": _swish,
    "quick_gelu": lambda x: _swish(x, 1.702),
}


def _swish_derivative(x: Array, sloped: float | Array = 1.0, slope: float | Array = 1.0) -> Array:
    """The derivative of x * sigmoid(sloped * x), where that of `sloped * x` is `slope`."""
    gate = 1 / (1 + np.exp(-sloped * x))
    return gate * (1 + x * slope * (1 - gate))


def _gelu_tanh_derivative(x: Array) -> Array:
    scale, cube = math.sqrt(8 / math.pi), 0.044715 * x * x
    return _swish_derivative(x, scale * (1 + cube), scale * (1 + 3 * cube))


def _gelu_derivative(x: Array) -> Array:
    return _erfc(-x / math.sqrt(2)) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": _gelu_tanh_derivative,
    "gelu": _gelu_derivative,
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "silu": _swish_derivative,
    "quick_gelu": lambda x: _swish_derivative(x, 1.702, 1.702),
}
