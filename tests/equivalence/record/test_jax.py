"""Loops and branches of `jax.lax` in a recorded run: run by value, and noted where numbers of the input decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer_equiv.equivalence.record.jax import gradients, record

IMAGES = np.array([[[[0.5]]], [[[2.0]]]])
WEIGHT = 3.0

Function = Callable[[Mapping[str, Any], Any], Any]


def keeping_nothing(function: Function) -> Any:
    """As the recorder calls it: with what the last call kept, which is nothing."""
    return lambda params, images, kept: (function(params, images), None)


def counted(params: Mapping[str, Any], x: Any) -> Any:
    return jax.lax.while_loop(lambda held: held[0] < 3, lambda held: (held[0] + 1, held[1] * params["w"]), (0, x))[1]


def doubled_to_100(params: Mapping[str, Any], x: Any) -> Any:
    return jax.lax.while_loop(lambda y: y.max() < 100, lambda y: 2 * y, x * params["w"])


def switched(params: Mapping[str, Any], x: Any) -> Any:
    branches = [lambda y: y + 1, lambda y: y * params["w"], lambda y: y - 1]
    return jax.lax.switch(jnp.array(1), branches, x)


def on_the_input(params: Mapping[str, Any], x: Any) -> Any:
    return jax.lax.cond(x.max() > 1, lambda y: y * params["w"], lambda y: -y, x)


def chosen_constant(params: Mapping[str, Any], x: Any) -> Any:
    return jax.lax.cond(x.max() > 1, lambda: params["w"], lambda: 0 * params["w"])


CONTROL: list[tuple[Function, Any, str]] = [
    (counted, IMAGES * WEIGHT**3, ""),
    (switched, IMAGES * WEIGHT, ""),
    (doubled_to_100, IMAGES * WEIGHT * 32, "lax.while_loop on numbers of the input"),
    (on_the_input, IMAGES * WEIGHT, "lax.cond on numbers of the input"),
    (chosen_constant, WEIGHT, "lax.cond on numbers of the input"),
]


@pytest.mark.parametrize(("function", "expected", "decision"), CONTROL)
def test_the_branch_and_the_turns_of_these_numbers_are_run(function: Function, expected: Any, decision: str) -> None:
    trace = record(keeping_nothing(function), {"w": ()}, IMAGES, lambda name, shape: np.array(WEIGHT))
    output = trace.values[trace.outputs[""]]
    assert output.is_data
    np.testing.assert_allclose(output.array, expected, rtol=1e-15)
    assert trace.decisions == ((decision,) if decision else ())


def test_loops_are_differentiated() -> None:
    made = gradients(
        keeping_nothing(counted), {"w": ()}, IMAGES, lambda name, shape: np.array(WEIGHT), "", np.ones(IMAGES.shape)
    )
    np.testing.assert_allclose(made["w"], 3 * WEIGHT**2 * IMAGES.sum(), rtol=1e-15)


def reduced(params: Mapping[str, Any], x: Any) -> Any:
    return jax.lax.reduce(x * params["w"], jnp.zeros((), x.dtype), lambda a, b: a + 1.0 * b, (1, 2, 3))


def reduced_in_float32(params: Mapping[str, Any], x: Any) -> Any:
    return reduced({"w": params["w"].astype(jnp.float32)}, x.astype(jnp.float32))


@pytest.mark.parametrize("function", [reduced, reduced_in_float32])
def test_a_reduction_by_a_function_of_scalars_is_one_operation(function: Function) -> None:
    images = np.arange(24.0).reshape(2, 3, 4, 1) / 7
    draw = lambda name, shape: np.array(1 / 3)  # noqa: E731
    trace = record(keeping_nothing(function), {"w": ()}, images, draw)
    made = trace.values[trace.outputs[""]]
    assert made.operation == "reduce"
    assert made.is_data
    np.testing.assert_allclose(made.array, images.sum((1, 2, 3)) / 3, rtol=1e-14)
    found = gradients(keeping_nothing(function), {"w": ()}, images, draw, "", np.ones(2))
    np.testing.assert_allclose(found["w"], images.sum(), rtol=1e-14)


@jax.custom_vjp
def clipped(x: Any) -> Any:
    return x


clipped.defvjp(lambda x: (x, None), lambda kept, gradient: (jnp.clip(gradient, -1e3, 1e3),))


@pytest.mark.parametrize(("bend", "nonlinear"), [(clipped, ("w",)), (jnp.tanh, ())])
def test_a_gradient_that_is_clipped_is_told(bend: Callable[[Any], Any], nonlinear: tuple[str, ...]) -> None:
    function = keeping_nothing(lambda params, x: bend(params["w"] * x))
    draw = lambda name, shape: np.array(WEIGHT)  # noqa: E731
    assert gradients(function, {"w": ()}, IMAGES, draw, "", np.ones(IMAGES.shape)).nonlinear == nonlinear


def test_complex_numbers_are_kept_by_their_real_parts() -> None:
    function = keeping_nothing(lambda params, x: params["w"] * jnp.fft.ifft(jnp.fft.fft(x)).real)
    trace = record(function, {"w": ()}, IMAGES, lambda name, shape: np.array(WEIGHT))
    assert not any(np.iscomplexobj(value.array) for value in trace.values)
