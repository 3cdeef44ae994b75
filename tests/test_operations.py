"""Derivatives of the NumPy operations are those of the operations, by the complex step, and so are a program's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixer_equiv import operations
from mixer_equiv.activations import ACTIVATIONS, CONSTANTS, DERIVATIVES, RoundedActivation
from mixer_equiv.operations import OPERATIONS, Operation, Parameter, Recorder

STEP = 1e-30
RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


# Arrays, then settings, of each operation. In the last case of linear, two axes are contracted, as in the stem.
CALLS: list[tuple[str, list[np.ndarray], tuple[Any, ...]]] = [
    ("cut", [drawn(2, 4, 9, 5)], ((2, 3),)),
    ("linear", [drawn(2, 3, 4), drawn(4, 5), drawn(5)], ()),
    ("linear", [drawn(2, 3, 4, 5), drawn(4, 5, 6), drawn(6)], ()),
    ("layer_norm", [drawn(2, 3, 7), drawn(7), drawn(7)], (1e-6,)),
    ("layer_norm", [drawn(2, 3, 7) + 5, drawn(7), drawn(7)], (0.3,)),
    ("swap", [drawn(2, 3, 4)], ()),
    *(("activate", [3 * drawn(4, 50)], (name,)) for name in ACTIVATIONS),
    *(
        ("activate", [3 * drawn(4, 50)], (RoundedActivation(name, ((constant, 0.9 * constant.value),)),))
        for name, constants in CONSTANTS.items()
        for constant in constants
    ),
    ("add", [drawn(2, 3), drawn(2, 3)], ()),
    ("mean", [drawn(2, 3, 4)], ()),
]
CASES = pytest.mark.parametrize(
    ("name", "arrays", "settings"), CALLS, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(CALLS)]
)


def moved_along(array: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return array + 1j * STEP * direction


def assert_derivatives(name: str, arrays: list[np.ndarray], settings: tuple[Any, ...]) -> None:
    """Each array is moved along a direction of its own: the imaginary part of f(x + ihv) is h times the derivative."""
    run, vjp = OPERATIONS[name]
    cotangent = np.random.default_rng(1).standard_normal(run(*arrays, *settings).shape)
    made = vjp(cotangent, *arrays, *settings)
    assert [part.shape for part in made] == [array.shape for array in arrays]
    for i, part in enumerate(made):
        direction = np.random.default_rng(i).standard_normal(part.shape)
        moved = [*arrays[:i], moved_along(arrays[i], direction), *arrays[i + 1 :]]
        expected = (run(*moved, *settings) * cotangent).sum().imag / STEP
        scale = np.linalg.norm(part) * np.linalg.norm(direction)
        assert abs((part * direction).sum() - expected) <= 1e-13 * scale, i


@CASES
def test_each_operation_has_its_derivatives(name: str, arrays: list[np.ndarray], settings: tuple[Any, ...]) -> None:
    assert_derivatives(name, arrays, settings)


@CASES
def test_a_derivative_that_is_a_little_off_is_seen(
    name: str, arrays: list[np.ndarray], settings: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, vjp = OPERATIONS[name]
    for i in range(len(arrays)):

        def slightly_off(*given: Any, i: int = i) -> list[np.ndarray]:
            return [part * (1 + 1e-10 * (i == k)) for k, part in enumerate(vjp(*given))]

        monkeypatch.setitem(OPERATIONS, name, Operation(run, slightly_off))
        with pytest.raises(AssertionError):
            assert_derivatives(name, arrays, settings)


def test_every_operation_and_activation_has_a_derivative() -> None:
    assert {name for name, *_ in CALLS} == OPERATIONS.keys()
    assert DERIVATIVES.keys() == ACTIVATIONS.keys()


def test_what_a_program_uses_twice_has_the_sum_of_its_gradients() -> None:
    shared = {name: Parameter(name, ()) for name in ("norm/scale", "norm/bias")}

    def model(ops: Any, weights: Any, x: Any) -> dict[str, Any]:
        once = ops.layer_norm(x, weights["norm/scale"], weights["norm/bias"], 1e-3)
        return {"out": ops.add(once, ops.layer_norm(once, weights["norm/scale"], weights["norm/bias"], 1e-3))}

    program = Recorder("model").program(model, shared)
    weights, x, cotangent = {name: drawn(6) for name in shared}, drawn(3, 6), drawn(3, 6)
    gradients = program.gradients(weights, x, cotangent)
    for name in shared:
        direction = drawn(6)
        moved = {**weights, name: moved_along(weights[name], direction)}
        expected = (model(operations, moved, x)["out"] * cotangent).sum().imag / STEP
        assert abs((gradients[name] * direction).sum() - expected) <= 1e-13 * np.linalg.norm(gradients[name]) * 6
