"""Activation functions of a Mixer's MLPs in NumPy float64, and their derivatives: `ACTIVATIONS` and `DERIVATIVES`.

They are written in other expressions than those of the frameworks, whose functions they are compared with. Code may
have other numbers for their `CONSTANTS`, such as rounded ones: that is a `RoundedActivation`. `activation_function` and
`activation_derivative` take either, a name or one of these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np

Array = np.ndarray

ROOT = math.sqrt(2 / math.pi)
CUBIC = 0.044715
HALF = 1 / math.sqrt(2)
SLOPE = 1.702


def _swish(x: Array, slope: float | Array = 1.0) -> Array:
    """x * sigmoid(slope * x), with the limit 0 where exp overflows."""
    return x / (1 + np.exp(-slope * x))


def _gelu_tanh(x: Array, root: float = ROOT, cubic: float = CUBIC) -> Array:
    # (1 + tanh(u)) / 2 is sigmoid(2u), with u = root * (x + cubic * x^3).
    return _swish(x, 2 * root * (1 + cubic * x * x))


def _gelu(x: Array, half: float = HALF) -> Array:
    # The normal distribution function by erfc keeps its relative precision for negative x.
    return x / 2 * _erfc(-x * half)


def _quick_gelu(x: Array, slope: float = SLOPE) -> Array:
    return _swish(x, slope)


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
    "quick_gelu": _quick_gelu,
}


def _swish_derivative(x: Array, sloped: float | Array = 1.0, slope: float | Array = 1.0) -> Array:
    """The derivative of x * sigmoid(sloped * x), where that of `sloped * x` is `slope`."""
    gate = 1 / (1 + np.exp(-sloped * x))
    return gate * (1 + x * slope * (1 - gate))


def _gelu_tanh_derivative(x: Array, root: float = ROOT, cubic: float = CUBIC) -> Array:
    scale, cube = 2 * root, cubic * x * x
    return _swish_derivative(x, scale * (1 + cube), scale * (1 + 3 * cube))


def _gelu_derivative(x: Array, half: float = HALF) -> Array:
    return _erfc(-x * half) / 2 + x * half * np.exp(-x * half * x * half) / math.sqrt(math.pi)


def _quick_gelu_derivative(x: Array, slope: float = SLOPE) -> Array:
    return _swish_derivative(x, slope, slope)


DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": _gelu_tanh_derivative,
    "gelu": _gelu_derivative,
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "silu": _swish_derivative,
    "quick_gelu": _quick_gelu_derivative,
}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A number in an activation, in the words of its definition, and the name of the argument that it is."""

    argument: str
    words: str
    value: float


CONSTANTS: Mapping[str, tuple[Constant, ...]] = {
    "gelu_tanh": (Constant("root", "sqrt(2 / pi)", ROOT), Constant("cubic", "0.044715", CUBIC)),
    "gelu": (Constant("half", "1 / sqrt(2)", HALF),),
    "quick_gelu": (Constant("slope", "1.702", SLOPE),),
}


@dataclasses.dataclass(frozen=True)
class RoundedActivation:
    """The activation called `name`, with these `numbers` for some of its constants."""

    name: str
    numbers: tuple[tuple[Constant, float], ...]

    def __str__(self) -> str:
        said = " and ".join(f"{number:.12g} for {constant.words}" for constant, number in self.numbers)
        return f"{self.name} with {said}"

    @property
    def arguments(self) -> dict[str, float]:
        return {constant.argument: number for constant, number in self.numbers}

    @property
    def error(self) -> float:
        """How far the numbers are from the constants, relative to them, at most."""
        return max(abs(number / constant.value - 1) for constant, number in self.numbers)


Activation = str | RoundedActivation


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The function of a name in `ACTIVATIONS`, or with other constants."""
    if isinstance(activation, RoundedActivation):
        return partial(ACTIVATIONS[activation.name], **activation.arguments)
    return ACTIVATIONS[activation]


def activation_derivative(activation: Activation) -> Callable[[Array], Array]:
    """The derivative of the function of a name in `ACTIVATIONS`, or with other constants."""
    if isinstance(activation, RoundedActivation):
        return partial(DERIVATIVES[activation.name], **activation.arguments)
    return DERIVATIVES[activation]
