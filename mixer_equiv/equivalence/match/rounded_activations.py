"""`rounded_activations`: activations with other numbers for their constants, such as 0.79788456 for sqrt(2 / pi).

The numbers are those of a trace that are near to a constant, or to what code makes of one. Nothing here knows programs
or steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from mixer_equiv.activations import CONSTANTS, Constant, RoundedActivation
from mixer_equiv.equivalence.record.array_fingerprint import Fingerprint

# How far a number may be from a constant, relative to it, to be taken for a rounded one: 0.8 is, for sqrt(2 / pi), and
# 0.79 is another function's. Nearer than the second it is the constant itself, computed in other steps.
FARTHEST = 5e-3
NEAREST = 1e-14


def rounded_activations(scalars: Sequence[float]) -> list[RoundedActivation]:
    """Activations with the numbers among a run's `scalars`, those with the fewest other constants first."""
    found = (activation for name in CONSTANTS for activation in _rounded(name, scalars))
    return sorted(found, key=lambda activation: len(activation.numbers))


def _rounded(name: str, scalars: Sequence[float]) -> Iterator[RoundedActivation]:
    held: list[tuple[tuple[Constant, float], ...]] = [()]
    for constant in CONSTANTS[name]:
        held = [
            (*before, *((constant, number) for number in chosen))
            for before in held
            for chosen in ((), *((number,) for number in _near(constant, _made_of(scalars, before, name))))
        ]
    yield from (RoundedActivation(name, numbers) for numbers in held if numbers)


def _made_of(scalars: Sequence[float], chosen: Sequence[tuple[Constant, float]], name: str) -> Iterator[float]:
    """Numbers that code may have made into the `scalars`: by a double, a reciprocal, or a product with a constant."""
    others = [constant.value for constant in CONSTANTS[name]] + [number for _, number in chosen]
    for scalar in (abs(scalar) for scalar in scalars if scalar):
        yield from (scalar, scalar / 2, 1 / scalar)
        yield from itertools.chain.from_iterable((scalar / other, scalar / other / 2) for other in others)


def _near(constant: Constant, numbers: Iterator[float]) -> dict[float, None]:
    return {number: None for number in numbers if NEAREST < abs(number / constant.value - 1) < FARTHEST}


def distance(own: Fingerprint, other: Fingerprint) -> float:
    """How far the sums of two arrays are apart, relative to their sizes."""
    if not own.squares:
        return 0.0
    spread = (own.size * own.squares) ** 0.5
    return abs(own.squares - other.squares) / own.squares + abs(own.total - other.total) / spread
