"""A failing call written as code that runs by itself."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixer_equiv
from mixer_equiv import Policy
from mixer_equiv.testing.reproducer import code_for_call
from tests.support.oblong import CONFIG


class Thing:
    """Something that a test makes."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    class Inner:
        pass


THING = Thing("global")


def code_of(*sides: Any, **options: Any) -> str:
    return code_for_call("verify", {**dict(zip("ab", sides, strict=False)), **options}, sys._getframe(1))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Runs code, and gives what it calls `verify` with."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(mixer_equiv, "verify", lambda *sides, **options: calls.append((sides, options)))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(code: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        exec(compile(code, "snippet.py", "exec"), {"__name__": "snippet"})
        return calls.pop()

    return run


def test_values_and_what_can_be_imported_are_written_as_they_are(called: Any) -> None:
    options = {
        "config": CONFIG,
        "policy": Policy(residual=1e-9),
        "kwargs": {"a": (1,), "b": [None, True, 2.5e-8, "it's"], "c": float("-inf"), "d": np.float32(0.1)},
        "on_step": print,
    }
    sides, again = called(code_of(Thing, Thing.Inner, **options))
    assert sides == (Thing, Thing.Inner)
    assert again == options
    assert called(code_of(Path("weights.npz"), THING)) == (("weights.npz", THING), {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_small_tensors_are_written_bit_for_bit(called: Any, dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, options = called(code_of("torch", images=images, labels=torch.tensor(2)))
    assert (options["images"].dtype, options["labels"].shape) == (dtype, ())
    assert torch.equal(options["images"], images)


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(2).to_sparse(),
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2, requires_grad=True),
        torch.ones(900),
    ],
    ids=["sparse", "float8", "with a gradient", "large"],
)
def test_other_tensors_are_left_to_be_filled_in(odd: torch.Tensor) -> None:
    assert "images = ...  # to be filled in: odd, a Tensor that only the test has\n" in code_of("torch", images=odd)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_small_arrays_are_written_bit_for_bit(called: Any, dtype: str) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(dtype)
    _, options = called(code_of("flax", images=images, labels=np.zeros((0, 3))))
    assert options["images"].dtype == images.dtype
    assert options["images"].tobytes() == images.tobytes()
    assert options["images"].shape == images.shape
    assert options["labels"].shape == (0, 3)


def test_lambdas_and_local_functions_come_with_the_names_in_them(called: Any) -> None:
    eps, pair = 1e-5, (CONFIG, 2)

    def make(config: Any, eps: float = eps) -> Any:
        return [Thing(config, eps, pair, n).arguments for n in range(2)]

    sides, _ = called(code_of(lambda c: make(c, np.float64(eps)), make))
    assert sides[0] is not make
    assert [side(7) for side in sides] == [[(7, eps, pair, 0), (7, eps, pair, 1)]] * 2


def test_a_model_is_made_as_the_call_makes_it(called: Any) -> None:
    eps = 1e-5
    (made, *_), _ = called(code_of(Thing(eps, CONFIG, [n + 1 for n in range(3)]), THING, seed=int("3")))
    assert made.arguments == (eps, CONFIG, [1, 2, 3])
    (made, *_), options = called(code_of(functools.partial(Thing, eps), kwargs=dict.fromkeys("x", 1)))
    assert made("rest").arguments == (eps, "rest")
    assert options == {"kwargs": {"x": 1}}


def test_what_only_the_test_has_is_left_to_be_filled_in(called: Any) -> None:
    model = Thing(1)
    model.arguments = (2,)
    code = code_of(model, lambda c: model, config=CONFIG)
    assert "mine = ...  # to be filled in: model, a Thing that only the test has\n" in code
    assert "other = ...  # to be filled in: model, a Thing that only the test has\n" in code
    assert called(code) == ((..., ...), {"config": CONFIG})

    self: Any = Thing()
    self.model = model
    code = code_of(self.model, lambda c: self.model)
    assert "mine = ...  # to be filled in: self.model, a Thing that only the test has\n" in code
    assert "other = ...  # to be filled in: self, a Thing that only the test has\n" in code

    class Local:
        pass

    code = code_of(Local, lambda c: Local())
    assert "mine = ...  # to be filled in: Local, the class test_what_only_the_test_has_is" in code
    assert "other = ...  # to be filled in: Local, the class test_what_only_the_test_has_is" in code


def test_two_lambdas_in_a_line_are_not_taken_for_each_other(called: Any) -> None:
    (one, other), _ = called(code_of(lambda c: (c, 1), lambda c: (c, 2)))
    assert (one(0), other(0)) == ((0, 1), (0, 2))


def test_two_things_of_one_name_are_not_taken_for_each_other(called: Any) -> None:
    def adding(number: int) -> Callable[[int], int]:
        return lambda c: c + number

    code = code_of(adding(1), adding(2))
    assert "number = 1\nmine = lambda c: c + number\n" in code
    (one, other), _ = called(code)
    assert (one(0), other(0)) == (1, 2)
    one, other = adding(1), adding(2)
    assert "other = ...  # to be filled in: there are two things called number" in code_of(one, other)
