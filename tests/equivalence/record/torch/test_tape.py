"""Tensors in other Python objects than those that the recorder made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.torch import gradients, record
from mixer_equiv.errors import NotFollowedError


class Named(Tensor):
    """A class of tensors that adds nothing."""


class Doubling(Tensor):
    """A class of tensors with operations of its own."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, kinds, args, kwargs or {})
        return 2 * result if function is torch.tanh else result


class Wrapping(nn.Module):
    def __init__(self, kind: type[Tensor]) -> None:
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.as_subclass(self.kind) * self.weight).as_subclass(self.kind)).as_subclass(Tensor) + 1


class Writing(Wrapping):
    """What is written by way of another object is there in the first."""

    def forward(self, x: Tensor) -> Tensor:
        made = x * self.weight
        made.as_subclass(self.kind).add_(1)
        return made * 2


X = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) / 7
WEIGHT = np.array([1.0, 2.0, 3.0])


def recorded(module: nn.Module) -> Any:
    return record(module, (X,), lambda name, shape: WEIGHT)


def test_a_value_in_another_class_of_tensors_is_the_same_value() -> None:
    trace = recorded(Wrapping(Named))
    assert [value.operation for value in trace.values if value.is_data] == ["input", "mul", "tanh", "add"]
    output = trace.values[trace.outputs[""]]
    np.testing.assert_array_equal(output.array, torch.tanh(X * torch.from_numpy(WEIGHT)) + 1)


def test_what_is_written_through_another_object_is_seen() -> None:
    trace = recorded(Writing(Named))
    output = trace.values[trace.outputs[""]]
    np.testing.assert_array_equal(output.array, 2 * (X * torch.from_numpy(WEIGHT) + 1))
    written = [value for value in trace.values if value.operation == "add_"]
    assert written
    assert set(output.inputs) <= {value.number for value in written}


@pytest.mark.parametrize("kind", [Wrapping, Writing])
def test_gradients_go_through_another_class_of_tensors(kind: type[Wrapping]) -> None:
    module = kind(Named)
    found = gradients(module, X, lambda name, shape: WEIGHT, {"weight": module.weight}, "", np.ones((2, 3)))
    slope = 2 * X if kind is Writing else X / torch.cosh(X * torch.from_numpy(WEIGHT)) ** 2
    np.testing.assert_allclose(found["weight"], slope.sum(0))


def test_a_class_with_operations_of_its_own_is_refused() -> None:
    with pytest.raises(NotFollowedError, match="Doubling, a class of tensors with operations of its own"):
        recorded(Wrapping(Doubling))


def test_transforms_of_functions_are_refused() -> None:
    class Mapped(Wrapping):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda row: row * self.weight)(x)

    with pytest.raises(NotFollowedError, match=r"torch.vmap, and what else transforms functions in torch.func, cannot"):
        recorded(Mapped(Named))
