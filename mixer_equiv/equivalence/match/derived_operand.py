"""`DerivedOperand`: an operand that a trace does not hold, and makes from those that it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from mixer_equiv.equivalence.record.trace import Value
from mixer_equiv.operations import Array


@dataclasses.dataclass(eq=False)
class DerivedOperand(Value):
    """An operand that `make` gives of the arrays of the values whose numbers are in `inputs`.

    On other weights it is made in the same way.
    """

    make: Callable[..., Array] = lambda array: array

    @classmethod
    def of(cls, operands: Sequence[Value], make: Callable[..., Array]) -> DerivedOperand:
        """The operand made of others; its own number is that of the first."""
        numbers = tuple(operand.number for operand in operands)
        leaves: frozenset[str] = frozenset().union(*(operand.leaves for operand in operands))
        fields: dict[str, Any] = {"is_data": False, "leaves": leaves, "make": make}
        return cls(numbers[0], make(*(operand.array for operand in operands)), "part", numbers, **fields)
