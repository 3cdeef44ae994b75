"""`Trace`: every value that a program made on its way from input to output, whatever framework it is written in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import numpy as np

from mixer_equiv.equivalence.record.fingerprint import Fingerprint


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
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.array)

    @property
    def size(self) -> int:
        return int(self.array.size)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Values in the order of computation, the outputs among them, and what the recorder noticed.

    `input` is the number of the input's value. `outputs` are by where in the result they stand, ""
    for a result that is one array. `parameters` are the names of all there are, used or not, with
    shapes; `hidden` those that the program uses and does not list among its own. `scalars` are the
    numbers that occurred as arguments of operations. `narrow_dtypes` are other floats than the pass's for which
    the code asked. `uses_random_numbers` tells whether random numbers were drawn.
    """

    values: list[Value]
    input: int
    outputs: Mapping[str, int]
    parameters: Mapping[str, tuple[int, ...]]
    hidden: tuple[str, ...]
    scalars: tuple[float, ...]
    narrow_dtypes: tuple[str, ...] = ()
    uses_random_numbers: bool = False

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences for a user about what the recorder noticed."""
        return tuple(
            f"it asks for {dtype} itself, and was verified in float64 throughout" for dtype in self.narrow_dtypes
        )

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
            if not any(value.fingerprint.matches(other.fingerprint) for other in alike):
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
