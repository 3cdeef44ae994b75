"""`Fingerprint`: sums that tell whether two arrays have the same elements, whatever their order."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

# Sums of equal elements differ by some 1e-14, and an eps of 1e-5 for 1e-6 moves them by 1e-7 and more.
TOLERANCE = 1e-11


class Fingerprint:
    """Sums over an array's elements that do not depend on their order, and tell generic arrays apart."""

    def __init__(self, array: np.ndarray) -> None:
        self.flat = array.ravel()
        self.size = int(self.flat.size)
        self.total, self.squares = float(self.flat.sum()), float(self.flat @ self.flat)

    @cached_property
    def cubes(self) -> float:
        """The sum of cubes, needed only where the other sums agree."""
        return float(np.square(self.flat) @ self.flat)

    def matches(self, other: Fingerprint) -> bool:
        """Whether the elements are the same but for rounding, in some order."""
        if self.size != other.size or not (math.isfinite(self.squares) and math.isfinite(other.squares)):
            return False
        spread = (self.size * self.squares) ** 0.5
        return (
            abs(self.squares - other.squares) <= TOLERANCE * self.squares
            and abs(self.total - other.total) <= TOLERANCE * spread
            and abs(self.cubes - other.cubes) <= TOLERANCE * self.squares * self.squares**0.5
        )
