"""`Trace`: every value that a model made on its way from input to output, whatever its framework.

Recorders make traces, and the search reads them. Nothing here runs a model, and nothing knows a Mixer.
`graph` has what made the values, to be run again on other parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from mixer_equiv.equivalence.place import FindPlace, Place, nowhere
from mixer_equiv.equivalence.record.array_fingerprint import Fingerprint

# Gives a parameter the value that it has in a run, by its name and shape.
Draw = Callable[[str, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(eq=False)
class Value:
    """One array of a forward pass.

    Attributes:
        number: Its place in the trace.
        array: The array, floats in float64, of complex numbers the real parts; empty where it was not asked for.
        operation: The framework's operation that made it, or "input", "parameter" or "constant".
        inputs: The numbers of the values from which it was made.
        is_data: Whether it depends on the input; if not, it is made of parameters and constants alone.
        leaves: The names of the parameters in it, where it does not depend on the input.
        name: Its name, if it is a parameter.
        is_view: Whether it has all elements of an earlier value, and no others.
        find_place: Gives its `place`.
        constants: The names of the constant tensors of the model in it, where it does not depend on the input.
    """

    number: int
    array: np.ndarray
    operation: str
    inputs: tuple[int, ...] = ()
    is_data: bool = True
    leaves: frozenset[str] = frozenset()
    name: str | None = None
    is_view: bool = False
    find_place: FindPlace = nowhere
    constants: frozenset[str] = frozenset()

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.array)

    @cached_property
    def place(self) -> Place | None:
        """The line of the model's code and the module that made it, or if it is a parameter, first used it."""
        return self.find_place()

    @property
    def size(self) -> int:
        return int(self.array.size)

    @cached_property
    def is_zero(self) -> bool:
        """Whether all elements are 0, as before anything is written into it, so that no value tells it from others."""
        return self.size > 0 and not (self.array.flat[0] or self.array.any())


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """Values in the order of computation, the outputs among them.

    Attributes:
        values: The values, by their numbers.
        input: The number of the input's value.
        outputs: Numbers by the outputs' paths in the result; the path of a result that is one array is "".
        parameters: The shapes of the model's parameters by name, whether they were used or not.
        hidden: The names of parameters that the model uses and does not list among its own.
        scalars: The numbers that occurred as arguments of operations.
        narrow_dtypes: Floats other than the pass's for which the code asked.
        uses_random_numbers: Whether random numbers were drawn.
        constants_left: The names of constant tensors of the model whose numbers went to Python.
        exits: The places at which arrays that depend on the input left the framework.
        decisions: The places at which numbers that depend on the input decided, or could, what was run.
        weight_decisions: The places at which numbers of parameters alone did.
    """

    values: list[Value]
    input: int
    outputs: Mapping[str, int]
    parameters: Mapping[str, tuple[int, ...]]
    hidden: tuple[str, ...]
    scalars: tuple[float, ...]
    narrow_dtypes: tuple[str, ...] = ()
    uses_random_numbers: bool = False
    decisions: tuple[str, ...] = ()
    weight_decisions: tuple[str, ...] = ()
    constants_left: frozenset[str] = frozenset()
    exits: tuple[str, ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences that tell a user what the recorder noticed."""
        asked = (name.partition(" ") for name in self.narrow_dtypes)
        return tuple(
            f"it asks for {dtype} itself{how and f' ({how})'}, and was verified in float64 throughout"
            for dtype, _, how in asked
        )

    @cached_property
    def path(self) -> int:
        """A hash of the operations and of what each was done to: two runs of one hash took the same steps."""
        return hash(tuple((value.operation, value.inputs) for value in self.values))

    @cached_property
    def data(self) -> list[Value]:
        """The values that depend on the input, without views."""
        return [value for value in self.values if value.is_data and not value.is_view]

    @cached_property
    def by_size(self) -> dict[int, list[Value]]:
        """The values that depend on the input, but for zeros, by their numbers of elements."""
        result: dict[int, list[Value]] = {}
        for value in (value for value in self.data if not value.is_zero):
            result.setdefault(value.size, []).append(value)
        return result

    @cached_property
    def operands(self) -> list[Value]:
        """The values made of parameters alone, parameters first; of those with the same elements the first."""
        candidates = [
            value
            for value in self.values
            if not value.is_data and value.leaves and not value.is_view and value.size and value.array.dtype.kind == "f"
        ]
        candidates.sort(key=lambda value: value.name is None)
        distinct: dict[int, list[Value]] = {}
        for value in candidates:
            alike = distinct.setdefault(value.size, [])
            if not any(value.fingerprint.matches(other.fingerprint) for other in alike):
                alike.append(value)
        return [value for values in distinct.values() for value in values]

    def place_after(self, value: Value, *, views: bool = False) -> Place | None:
        """The place of the first operation on a value, or if `views` count, of its first rearrangement elsewhere."""
        same = {value.number}
        for later in self.values[value.number + 1 :]:
            if not same.isdisjoint(later.inputs):
                # A framework's function may end with a view of its own.
                if not later.is_view or (views and later.place != value.place):
                    return later.place
                same.add(later.number)
        return None

    @cached_property
    def constants(self) -> tuple[str, ...]:
        """The names of constant tensors of the model that meet the input, or decide what is run."""
        met = (self.values[i].constants for value in self.data for i in value.inputs if not self.values[i].is_data)
        return tuple(sorted(self.constants_left.union(*met)))

    @cached_property
    def users(self) -> dict[int, list[int]]:
        """The numbers of values that are made of each value that depends on the input, and lead to an output."""
        result: dict[int, list[int]] = {number: [] for number in self.outputs.values()}
        for value in reversed(self.values):
            if value.number in result:
                for number in value.inputs:
                    if self.values[number].is_data:
                        result.setdefault(number, []).append(value.number)
        return result

    @cached_property
    def bottlenecks(self) -> frozenset[int]:
        """The numbers of values through which all goes on: no earlier value has a later user."""
        passed_by = np.zeros(len(self.values) + 1, np.intp)
        for number, users in self.users.items():
            for user in users:
                passed_by[number + 1] += 1
                passed_by[user] -= 1
        return frozenset(np.flatnonzero(passed_by.cumsum() == 0).tolist())

    def made_of(self, value: Value, last: int) -> set[int]:
        """The numbers of values, up to the last that may be, into which a value enters; its own too."""
        made = {value.number}
        for later in self.values[value.number + 1 : last + 1]:
            if not made.isdisjoint(later.inputs):
                made.add(later.number)
        return made

    @cached_property
    def meeting_parameters(self) -> frozenset[int]:
        """The numbers of values that depend on the input and meet parameters, as they are or as views."""
        met: set[int] = set()
        for value in self.data:
            sources = [self.values[i] for i in value.inputs]
            if any(source.leaves for source in sources):
                met.update(self._behind_views(source).number for source in sources if source.is_data)
        return frozenset(met)

    def _behind_views(self, value: Value) -> Value:
        while value.is_view and (before := next((i for i in value.inputs if self.values[i].is_data), None)) is not None:
            value = self.values[before]
        return value

    @cached_property
    def uses(self) -> dict[frozenset[str], list[int]]:
        """The numbers of values at which parameters meet the input, by the parameters' names."""
        result: dict[frozenset[str], list[int]] = {}
        for value in self.data:
            for source in (self.values[i] for i in value.inputs):
                if not source.is_data and source.leaves:
                    result.setdefault(source.leaves, []).append(value.number)
        return result
