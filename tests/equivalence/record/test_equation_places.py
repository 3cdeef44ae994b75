"""Places of JAX's equations: lines of the user's code, and modules by the names that linen and nnx calls give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen, nnx

from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record.jax import record
from mixer_equiv.equivalence.record.module_scopes import naming_calls
from mixer_equiv.equivalence.sides.adapters import foreign_model_of
from mixer_equiv.equivalence.sides.foreign_model import generic

SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()


def line(mark: str) -> int:
    (number,) = (number for number, text in enumerate(SOURCE, 1) if text.endswith(f"# {mark}"))
    return number


@jax.jit
def halved(x: Any) -> Any:
    return x * 0.5  # in a function under jit


def function(params: Any, x: Any, kept: Any) -> Any:
    x = jax.nn.relu(x * params["scale"])  # first call
    with jax.named_scope("MyMixer"), jax.named_scope("part"):
        x = jax.nn.relu(x - 1)  # second call
    return jax.lax.scan(lambda carry, _: (halved(carry), None), x, None, length=2)[0], kept


def places_of(operation: str) -> list[Place | None]:
    trace = record(function, {"scale": (3,)}, np.ones((2, 3)), generic(0))
    return [value.place for value in trace.values if value.is_data and value.operation == operation]


def test_function_of_a_library_is_at_the_line_that_calls_it_though_jax_keeps_it_traced() -> None:
    first, second = places_of("max")
    assert first is not None
    assert second is not None
    assert (first.line, second.line) == (line("first call"), line("second call"))
    assert (first.module, second.module) == ("", "part")
    assert second.text == "x = jax.nn.relu(x - 1)  # second call"


def test_turns_of_a_loop_are_at_the_line_of_their_own_code() -> None:
    _, *turns = places_of("mul")
    assert [place and place.line for place in turns] == [line("in a function under jit")] * 2


class Layers(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.remat(linen.Dense)(x.shape[-1])(x.reshape(len(x), -1, 3))
        body = linen.scan(
            lambda layer, carry, _: (layer(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return jax.vmap(lambda y: y * 2)(body(linen.Dense(3, name="stacked"), x, None)[0])


def test_modules_of_linen_are_known_in_its_transforms() -> None:
    trace = foreign_model_of(Layers(), (3, 4, 4)).trace(np.ones((2, 4, 4, 3)), generic(0))
    modules = {value.place.module for value in trace.values if value.place and value.operation == "dot_general"}
    assert {module.rpartition("/")[2] for module in modules} == {"CheckpointDense_0", "stacked"}


class Part(nnx.Module):
    def __init__(self) -> None:
        self.scale = nnx.Param(jax.numpy.ones(3))

    def __call__(self, x: Any) -> Any:
        return x * self.scale


class Child(Part):
    """A class whose call is its parent's."""


class Whole(nnx.Module):
    def __init__(self) -> None:
        self.parts = nnx.List([Part(), Child()])

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x + 1


def test_modules_of_nnx_are_known_and_their_classes_are_as_before() -> None:
    calls = vars(Part)["__call__"], vars(Whole)["__call__"]
    trace = foreign_model_of(Whole(), (3, 4, 4)).trace(np.ones((2, 4, 4, 3)), generic(0))
    modules = [value.place and value.place.module for value in trace.data if value.operation in ("mul", "add")]
    assert modules == ["parts/0", "parts/1", ""]
    assert (vars(Part)["__call__"], vars(Whole)["__call__"]) == calls
    assert "__call__" not in vars(Child)


def test_classes_are_as_before_when_a_model_fails() -> None:
    call = vars(Part)["__call__"]
    with pytest.raises(TypeError), naming_calls({"": Part()}):
        Part()(None)
    assert vars(Part)["__call__"] is call
