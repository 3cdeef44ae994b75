"""Trials of functions on NumPy images that are right, or fail in one way alone: each trial sees its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.calls import IMAGES as IMAGES_GIVEN
from mixer_equiv.equivalence.record.calls import Calls
from mixer_equiv.equivalence.sides.adapters import foreign_model_of
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel, generic
from mixer_equiv.equivalence.sides.trials import (
    CALLS,
    IN_PAIRS,
    IN_TURN,
    KINDS,
    LARGER,
    LARGEST,
    InTurn,
    Subject,
    find_branches,
    find_dependence,
    find_fresh,
    find_limits,
    find_memory,
    find_overwritten,
    find_stale,
    find_ways,
)

IMAGES = np.random.default_rng(0).standard_normal((5, 4, 3, 2))

# From images and the number of the call, from 1 on, to rows.
Function = Callable[[np.ndarray, int], np.ndarray]


def right(images: np.ndarray, call: int) -> np.ndarray:
    return images.reshape(len(images), -1) @ np.arange(72.0).reshape(24, 3)


def subject(function: Function, at_least: int = 1) -> Subject:
    """A model that counts its calls in one session."""

    def call_in_turn(batches: Sequence[np.ndarray], *_: object, skipped: int, **__: object) -> Calls:
        numbers = [*range(1, len(batches)), len(batches) + skipped]
        made = [{"": function(images, number)} for images, number in zip(batches, numbers, strict=True)]
        return Calls(tuple(made), ("calls",), ("calls",))

    def unused(*arguments: object) -> None:
        raise AssertionError

    model = ForeignModel("model", "torch", unused, {}, unused, unused, call_in_turn)
    return Subject(model, generic(0), "", at_least)


def dependence(function: Function) -> str | None:
    tried = subject(function)
    breach = find_dependence(tried, InTurn.of(tried, IMAGES, (*IN_TURN, *LARGER, *LARGEST)), IMAGES)
    return breach and breach.fault


def memory(function: Function) -> str | None:
    breach = find_memory(subject(function), IMAGES[:1], ("calls",))
    return breach and breach.count


def test_a_function_of_each_image_passes_all_trials() -> None:
    expected = partial(right, call=1)
    assert dependence(right) is memory(right) is None
    assert find_branches(subject(right), expected, IMAGES[:1].shape, 0, decides=False) is None
    assert find_limits(subject(right), expected, IMAGES, "usual", "") is None
    assert find_fresh(subject(right), expected, IMAGES) is None


def _in_whole(images: np.ndarray, part: int) -> np.ndarray:
    """1 for the images of whole parts of a batch, and 0 for the rest."""
    return (np.arange(len(images)) < max(len(images) // part * part, part))[:, None]


NEIGHBOURS: dict[str, Function] = {
    "the first row alone is right": lambda x, call: right(x, call) + (np.arange(len(x)) > 0)[:, None],
    "the mean of all": lambda x, call: right(x - x.mean(0), call),
    "of one image alone": lambda x, call: right(x, call) * (1 if len(x) > 1 else 2),
    "of more than two": lambda x, call: right(x, call) * (1 if len(x) < 3 else 2),
    "of three": lambda x, call: right(x, call) * (1 if len(x) != 3 else 2),
    "of thirty": lambda x, call: right(x, call) * (1 if len(x) < 30 else 2),
    "of a hundred": lambda x, call: right(x, call) * (1 if len(x) < 100 else 2),
    "in whole sixteens": lambda x, call: right(x, call) * (1 if len(x) % 16 else 2),
    "beyond whole sixty-fours": lambda x, call: right(x, call) * _in_whole(x, 64),
    "of images that come twice": lambda x, call: right(x, call) * (1 + (len(np.unique(x[:, 0, 0, 0])) < len(x))),
    "the other way round": lambda x, call: right(x, call)[::-1],
    "NaN for the last of five": lambda x, call: right(x, call) * np.where(np.arange(len(x)) == 4, np.nan, 1)[:, None],
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_images_that_change_each_other_are_seen(name: str) -> None:
    assert dependence(NEIGHBOURS[name]) == "neighbours"


@pytest.mark.parametrize("first_wrong", range(2, len(IN_TURN) + 1))
def test_a_later_call_that_is_wrong_is_memory(first_wrong: int) -> None:
    assert dependence(lambda x, call: right(x, call) * (1 if call < first_wrong else 2)) == "memory"


@pytest.mark.parametrize(
    ("first_wrong", "said"),
    [(CALLS, f"call {CALLS}"), (14, "call 100"), (101, "call 101"), (1000, "call 1000"), (500_000, "call 1000003")],
)
def test_a_call_that_is_far_away_is_reached(first_wrong: int, said: str) -> None:
    assert memory(lambda x, call: right(x, call) * (1 if call < first_wrong else 2)) == said


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (lambda x, call: right(x / 255 if x.max() > 10 else x, call), "limit"),
        (lambda x, call: right((x - 0.5) / 0.5 if x.min() >= 0 else x, call), "branch"),
        (lambda x, call: right(x, call) + (x.max() == 0), "branch"),
        (lambda x, call: right(np.maximum(x, -2.5), call), "branch"),
        (lambda x, call: right(np.where(x == 1, 0, x), call), "branch"),
        (lambda x, call: right(np.where((x == x[:, :, :1]).all((2, 3), keepdims=True), 1, x), call), "branch"),
    ],
)
def test_other_functions_for_some_images_are_seen(function: Function, fault: str) -> None:
    breach = find_branches(subject(function), partial(right, call=1), IMAGES[:1].shape, 0, decides=False)
    assert breach is not None
    assert breach.fault == fault
    assert breach.count.endswith(f"of {len(KINDS)} kinds of images") or fault == "limit"


def test_what_decides_on_numbers_of_large_images_is_no_limit() -> None:
    branching: Function = lambda x, call: right(x / 255 if x.max() > 10 else x, call)  # noqa: E731
    breach = find_branches(subject(branching), partial(right, call=1), IMAGES[:1].shape, 0, decides=True)
    assert breach is not None
    assert breach.fault == "branch"


def test_a_limit_that_large_images_reach_is_seen() -> None:
    breach = find_limits(
        subject(lambda x, call: right(np.clip(x, -90, 90), call)), partial(right, call=1), 100 * IMAGES, "large", ""
    )
    assert breach is not None
    assert breach.fault == "limit"


def test_a_model_of_pairs_is_given_pairs() -> None:
    def of_two(images: np.ndarray, call: int) -> np.ndarray:
        assert len(images) == 2
        return right(images, call)

    assert find_branches(subject(of_two, 2), partial(right, call=1), IMAGES[:1].shape, 0, decides=False) is None
    tried = subject(of_two)
    assert find_dependence(tried, InTurn.of(tried, IMAGES, IN_PAIRS), IMAGES) is None


@pytest.mark.parametrize(("what", "is_lost"), [(IMAGES_GIVEN, True), ("", True), ("features", False)])
def test_what_a_call_writes_over_is_lost(what: str, is_lost: bool) -> None:
    seen = InTurn(((0,),), (np.zeros((1, 3)),), (), (), (what,), ((1, 3),))
    assert (find_overwritten(subject(right), seen) is not None) == is_lost


def in_torch(function: Callable[[nn.Linear, Tensor], Tensor]) -> Subject:
    """A Linear over images, by a function of it and them."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 3)

        def forward(self, images: Tensor) -> Tensor:
            return function(self.layer, images.flatten(1))

    return Subject(foreign_model_of(Model(), (2, 4, 3)), generic(0), "")


WAYS: dict[str, Callable[[nn.Linear, Tensor], Tensor]] = {
    "under torch.inference_mode": lambda f, x: f(x) * (1 + torch.is_inference_mode_enabled()),
    "where gradients are recorded": lambda f, x: f(x) * (1 + torch.is_grad_enabled()),
    "on images that require gradients": lambda f, x: f(x) * (1 + x.requires_grad),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_function_in_some_mode_is_seen(way: str) -> None:
    assert find_ways(in_torch(lambda f, x: f(x)), IMAGES, [*WAYS]) is None
    breach = find_ways(in_torch(WAYS[way]), IMAGES, [way])
    assert breach is not None
    assert (breach.fault, breach.found) == ("branch", f"something else {way}")


def test_what_is_kept_of_weights_and_images_that_are_written_over_is_seen() -> None:
    kept: dict[str, Tensor] = {}

    def kernel(layer: nn.Linear) -> Tensor:
        return kept.setdefault("kernel", layer.weight.detach().clone())

    assert find_stale(in_torch(lambda f, x: f(x)), generic(1), IMAGES) is None
    breach = find_stale(in_torch(lambda f, x: x @ kernel(f).T + f.bias), generic(1), IMAGES)
    assert breach is not None
    assert breach.fault == "memory"
