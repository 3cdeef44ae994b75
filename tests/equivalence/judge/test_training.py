"""Training steps: two sides train alike, and a difference in training is seen."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from mixer_equiv import verify
from mixer_equiv.equivalence.judge import training
from tests.support.small_verify import IMAGE, SMALL
from tests.support.structures import OwnMixer


@pytest.mark.parametrize("model", ["torch", "nnx", "OwnMixer", "shared norms"])
def test_two_sides_train_alike(model: str) -> None:
    faults = ("norm_shared",) if model == "shared norms" else ()
    given = OwnMixer(SMALL, faults) if model in ("OwnMixer", "shared norms") else model
    image = {} if isinstance(given, str) else {"image": IMAGE}
    report = verify(given, "flax", train_steps=5, **image)
    assert [(trained.steps, trained.threshold) for trained in report.training] == [(5, 1e-12), (5, 1e-9)]
    assert all(trained.residual <= trained.threshold / 100 for trained in report.training)
    unseen, shared = report.sides[0].num_parameters, model == "shared norms"
    assert unseen
    assert report.verdict == ("equivalent_under" if shared else "equivalent")
    assert {trained.count for trained in report.training} == {
        len(report.mapping) - len(report.unobservable) - (2 * SMALL.num_blocks if shared else 0)
    }
    assert f"5 steps of {report.training[1].optimiser}" in str(report)


@pytest.mark.parametrize("model", ["torch", "flax", "reference", "OwnMixer"])
def test_the_reference_trains_by_the_optimiser_of_the_other_side(model: str) -> None:
    given = OwnMixer(SMALL) if model == "OwnMixer" else model
    report = verify(given, "reference", train_steps=3, image=IMAGE)
    assert report.verdict == "equivalent"
    assert all(trained.residual <= trained.threshold / 100 for trained in report.training)


@pytest.mark.parametrize(("framework", "runner"), [("torch", "torch"), (None, "flax")])
def test_two_references_train_by_torch_where_it_is_installed(
    framework: str | None, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(start: Any, gradient: Any, steps: int, optimiser: Any) -> Any:
        used.append(runner)
        return start

    used: list[str] = []
    monkeypatch.setitem(training.STEPS, runner, asked)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: framework)
    verify("reference", "reference", train_steps=1, kwargs={"num_blocks": 2})
    assert used == [runner] * 4


@pytest.mark.parametrize("optimiser", range(2))
@pytest.mark.parametrize("option", ["lr", "other"])
def test_an_optimiser_that_is_set_otherwise_on_one_side_is_seen(
    monkeypatch: pytest.MonkeyPatch, optimiser: int, option: str
) -> None:
    changes = ({"momentum": 0.89}, {"eps": 2e-8})[optimiser] if option == "other" else {"lr": 1.001e-2}
    makers = (
        lambda optim, parameters: optim.SGD(parameters, **{**training.SGD, **changes}),
        lambda optim, parameters: optim.AdamW(parameters, **{**training.ADAMW, **changes}),
    )
    own = list(training.OPTIMISERS)
    own[optimiser] = dataclasses.replace(own[optimiser], torch=makers[optimiser])
    monkeypatch.setattr(training, "OPTIMISERS", tuple(own))
    report = verify("torch", "flax", kwargs={"num_blocks": 2}, train_steps=1 if option == "lr" else 3)
    assert report.verdict == "different"
    (reason,) = report.reasons
    steps = "1 step" if option == "lr" else "3 steps"
    assert reason.startswith(f"after {steps} of {report.training[optimiser].optimiser} parameters differ by")
    other = report.training[1 - optimiser]
    assert other.residual <= other.threshold


class _Doubled(torch.autograd.Function):
    """The identity, with a gradient of twice the size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return 2 * gradient


class Doubling(OwnMixer):
    def forward(self, images: Tensor) -> Tensor:
        return _Doubled.apply(super().forward(images))


def test_other_gradients_train_otherwise() -> None:
    report = verify(Doubling(SMALL), image=IMAGE, gradients=False, train_steps=1)
    assert report.verdict == "different"
    sgd, adamw = report.training
    assert sgd.residual > sgd.threshold
    assert adamw.residual <= 1e-5  # its first step is nearly the sign of the gradient


def test_models_whose_outputs_differ_are_not_trained() -> None:
    report = verify(OwnMixer(SMALL, ("pool_max",)), image=IMAGE, train_steps=2)
    assert report.training == ()
    assert report.gradients is None
    assert "gradients are not compared, since the outputs differ" in report.warnings
