"""`Trace`: every value that a program made on its way from input to output, whatever framework it is written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np


@dataclasses.dataclass(eq=False)
class Value:
    """One array of a forward pass, in float64.

    `inputs` are the numbers of the values it was made from. `is_data` tells what depends on the
    input from what is made of parameters and constants alone; of that, `leaves` are the names of
    the parameters in it, and `name` its own if it is one. A view has all elements of an earlier value
    and no others.
    """

    number: int
    array: np.ndarray
    operation: str
    inputs: tuple[int, ...] = ()
    is_data: bool = True
    leaves: frozenset[str] = frozenset()
    name: str | None = None
    is_view: bool = False

    @cached_property
    def print(self) -> Print:
        return Print(self.array)

    @property
    def size(self) -> int:
        return int(self.array.size)


class Print:
    """Sums over an array's elements that do not depend on their order, and tell generic arrays apart."""

    def __init__(self, array: np.ndarray) -> None:
        self.flat = array.ravel()
        self.size = int(self.flat.size)
        self.total, self.squares = float(self.flat.sum()), float(self.flat @ self.flat)

    @cached_property
    def cubes(self) -> float:
        """Asked for only where the others agree."""
        return float(np.square(self.flat) @ self.flat)

    def same(self, other: Print) -> bool:
        """Whether the elements are the same but for rounding, in some order."""
        if self.size != other.size or not np.isfinite([self.squares, other.squares]).all():
            return False
        spread = (self.size * self.squares) ** 0.5
        return (
            abs(self.squares - other.squares) <= TOLERANCE * self.squares
            and abs(self.total - other.total) <= TOLERANCE * spread
            and abs(self.cubes - other.cubes) <= TOLERANCE * self.squares * self.squares**0.5
        )


# Sums of equal elements differ by some 1e-14, and an eps of 1e-5 for 1e-6 moves them by 1e-7 and more.
TOLERANCE = 1e-11


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Values in the order of computation, the outputs among them, and what the recorder noticed.

    `input` is the number of the input's value. `outputs` are by where in the result they stand, ""
    for a result that is one array. `parameters` are the names of all there are, used or not, with
    shapes; `hidden` those that the program uses and does not list among its own. `scalars` are the
    numbers that occurred as arguments of operations. `draws` tells whether random numbers were drawn.
    """

    values: list[Value]
    input: int
    outputs: Mapping[str, int]
    parameters: Mapping[str, tuple[int, ...]]
    hidden: tuple[str, ...]
    scalars: tuple[float, ...]
    notices: tuple[str, ...] = ()
    draws: bool = False

    @cached_property
    def data(self) -> list[Value]:
        return [value for value in self.values if value.is_data and not value.is_view]

    @cached_property
    def by_size(self) -> dict[int, list[Value]]:
        """The values that depend on the input, by how many elements they have."""
        result: dict[int, list[Value]] = {}
        for value in self.data:
            result.setdefault(value.size, []).append(value)
        return result

    @cached_property
    def operands(self) -> list[Value]:
        """What is made of parameters alone, parameters first; of those with the same elements the first."""
        candidates = [
            value for value in self.values if not value.is_data and value.leaves and not value.is_view and value.size
        ]
        candidates.sort(key=lambda value: value.name is None)
        kept: dict[int, list[Value]] = {}
        for value in candidates:
            alike = kept.setdefault(value.size, [])
            if not any(value.print.same(other.print) for other in alike):
                alike.append(value)
        return [value for values in kept.values() for value in values]

    @cached_property
    def uses(self) -> dict[frozenset[str], list[int]]:
        """Where in the computation values of the input meet parameters, by the parameters' names."""
        result: dict[frozenset[str], list[int]] = {}
        for value in self.data:
            for source in (self.values[i] for i in value.inputs):
                if not source.is_data and source.leaves:
                    result.setdefault(source.leaves, []).append(value.number)
        return result


def narrowing(dtype: str) -> str:
    """What a recorder notices of code that asks for another float than the pass's."""
    return f"it asks for {dtype} itself, and was verified in float64 throughout"
