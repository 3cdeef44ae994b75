"""Options of `verify`: precision, device, thresholds, failing fast."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mixer_equiv import Checkpoint, ConfigError, convert, verify
from mixer_equiv.equivalence.policy import Policy
from mixer_equiv.equivalence.record.precision import device
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.small_verify import IMAGE, SMALL, run
from tests.support.structures import OwnMixer


@pytest.mark.parametrize(("dtype", "least", "most"), [("bfloat16", 1e-3, 1e-1), ("float16", 1e-4, 1e-2)])
def test_errors_are_shown_in_the_precision_asked_for(dtype: str, least: float, most: float) -> None:
    for model in ("torch", OwnMixer(DEFAULT_CONFIG)):
        report = verify(model, "flax", dtype=dtype, gradients=False, image=IMAGE)
        assert report.verdict == "equivalent"
        assert all(least < (side.rms_error or 0) < most for side in report.sides)
        assert f"{dtype[0:1]}{'p' if dtype == 'float16' else 'f'}16 error (RMS)" in str(report)


@pytest.mark.parametrize("dtype", ["float64", "int8", "half"])
def test_other_precisions_are_refused(dtype: str) -> None:
    with pytest.raises(ConfigError, match=f"dtype is '{dtype}', the low precision to show; it must be float32"):
        verify("torch", dtype=dtype)


@pytest.mark.parametrize("name", ["cuda:99", "meta", "toaster"])
def test_a_device_that_is_not_there_is_refused_and_leaves_no_trace(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device is '{name}', where torch cannot compute in float64"):
        verify("torch", "flax", device=name)
    assert device() == "cpu"


def test_the_device_asked_for_is_the_one_that_is_used() -> None:
    """Not the user's default one, on which nothing may be made."""
    with torch.device("meta"):
        report = verify(OwnMixer(SMALL), image=IMAGE)
        assert torch.empty(1).device.type == "meta"
    assert report.verdict == "equivalent"
    assert report.environment["torch device"] == "cpu"
    assert verify("torch", "flax", device="cpu:0").environment["torch device"] == "cpu:0"


def test_thresholds_are_what_they_are_set_to() -> None:
    result = run("--rtol", "1e-30", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["threshold"] == 1e-30
    assert "is rounding" in report["warnings"][0]
    result = run("--gradients", "--rtol", "gradients:1e-30", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["gradients"]["threshold"] == 1e-30
    assert "is rounding" in report["warnings"][0]
    result = run("--train-steps", "1", "--rtol", "adamw:0", "--json", "-")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [trained["threshold"] for trained in report["training"]] == [1e-12, 0.0]
    assert run("--rtol", "logits:1e-9", "--rtol", "sgd:1e-9").exit_code == 0


@pytest.mark.parametrize("text", ["x", "logits:", "stem:1e-3", "logits:-1", "nan", "1e-3:logits"])
def test_other_thresholds_are_refused(text: str) -> None:
    result = run("--rtol", text)
    assert result.exit_code == 2
    assert f"--rtol is '{text}'; it must be NAME:VALUE" in result.stderr.replace("\n", " ")


def test_policy_and_command_line_agree_on_what_is_gained_by_default() -> None:
    assert Policy() == Policy(residual=1e-12, gradients=1e-12, sgd=1e-12, adamw=1e-9)


def test_failing_fast_computes_nothing_more_once_the_two_differ() -> None:
    steps: list[str] = []
    report = verify(OwnMixer(SMALL, ("eps_1e-5",)), image=IMAGE, train_steps=1, fail_fast=True, on_step=steps.append)
    assert report.verdict == "equivalent_under"
    assert report.gradients is None
    assert report.training == ()
    assert not [step for step in steps if "gradients" in step or "training" in step]

    given = Checkpoint.from_arrays(random_params(SMALL, 0), config=SMALL)
    other = convert(Checkpoint.from_arrays(random_params(SMALL, 1), config=SMALL), to="torch")
    report = verify(given, other, fail_fast=True)
    assert (report.verdict, report.stages) == ("different", ())
    assert "the weights differ; nothing was run" in str(report)
    assert verify(given, fail_fast=True, gradients=True).gradients is not None


@pytest.mark.parametrize(("option", "value"), [("train_steps", -1), ("train_steps", 1.5), ("seed", -1)])
def test_counts_that_are_none_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option} is {value}; it must be a whole number of at least 0"):
        verify("torch", **{option: value})
