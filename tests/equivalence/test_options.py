"""What `verify` can be asked for besides a verdict: training steps, precision, thresholds, a page; what inputs show."""

from __future__ import annotations

import dataclasses
import html.parser
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mixer_equiv import Checkpoint, ConfigError, convert, save, verify
from mixer_equiv.cli import app
from mixer_equiv.equivalence.judge import training
from mixer_equiv.equivalence.policy import Policy
from mixer_equiv.equivalence.record.precision import device
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import random_images, random_params
from mixer_equiv.render.html import to_html
from tests.support.structures import OwnMixer

SMALL = DEFAULT_CONFIG.replace(num_blocks=3)
IMAGE = SMALL.in_channels, *SMALL.image_hw
RUN = "verify", "torch", "flax", "--kwargs", '{"num_blocks": 2}'


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*RUN, *arguments], catch_exceptions=False)


# Training steps


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
    report = verify("torch", "flax", kwargs={"num_blocks": 2}, train_steps=3)
    assert report.verdict == "different"
    (reason,) = report.reasons
    assert reason.startswith(f"after 3 steps of {report.training[optimiser].optimiser} parameters differ by")
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


# Precision, device, thresholds


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


# What inputs show


def test_every_known_fault_would_show_with_random_weights() -> None:
    report = verify("torch", "flax")
    assert len(report.visible) == 24
    assert min(report.visible.values()) > 1e-9
    assert "would have shown 24 of 24 known faults" in str(report)


def test_what_the_weights_cannot_show_is_said() -> None:
    params = random_params(SMALL, 0)
    params["MixerBlock_2/channel_mixing/Dense_1/kernel"][:] = 0
    report = verify(Checkpoint.from_arrays(params, config=SMALL), images=random_images(SMALL, 0))
    unseen = {fault for fault, moved in report.visible.items() if moved <= report.threshold}
    assert unseen == {f"activation: {name}" for name in ("none", "gelu", "relu", "silu", "quick_gelu")}
    assert "would have shown 19 of 24 known faults, each planted in one place, and not: activation: none" in " ".join(
        str(report).split()
    )


def test_a_fault_moves_the_output_by_as_much_as_is_said() -> None:
    """The erf GELU in the last block alone, by another program: the torch model with one layer exchanged."""
    from mixer_equiv.models.torch import MlpMixer

    report = verify("torch", "flax")
    model = MlpMixer(DEFAULT_CONFIG)
    model.blocks[-1].channel_mixing.activation = "gelu"
    planted = verify(model, "flax")
    assert report.visible["activation: gelu"] == pytest.approx(planted.residual, rel=1)


# The page


class _Seen(html.parser.HTMLParser):
    """The text of a page, and elements that are not closed."""

    EMPTY = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert not any("://" in (value or "") for _, value in attrs)
        self.open += [tag] if tag not in self.EMPTY else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> str:
    seen = _Seen()
    seen.feed(page)
    assert not seen.open
    return " ".join(" ".join(seen.text).split())


def test_the_page_has_what_the_report_has(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    result = run("--html", str(path), "--gradients", "--train-steps", "2")
    assert result.exit_code == 0
    assert "EQUIVALENT: fp64 residual" in result.stdout
    text = read(path.read_text(encoding="utf-8"))
    for part in ("EQUIVALENT", "block 1 channel mixing", "2 steps of AdamW", "float32 error", "moves the output by"):
        assert part in text

    report = verify(OwnMixer(SMALL, ("eps_1e-5",)), image=IMAGE)
    text = read(to_html(report))
    for part in ("NOT EQUIVALENT, explained", "layer norm eps", "1e-05", "7 of 7", "is the same function"):
        assert part in text


@pytest.mark.parametrize("kind", ["no Mixer", "other sizes", "not a number"])
def test_reports_with_little_in_them_have_a_page(kind: str) -> None:
    if kind == "no Mixer":
        report = verify(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(216, 7)), image=IMAGE)
    elif kind == "other sizes":
        report = verify("torch:S/32", "flax:B/32")
    else:
        params = random_params(SMALL, 0)
        params["stem/bias"][0] = np.nan
        report = verify(Checkpoint.from_arrays(params, config=SMALL))
    assert all(reason in read(to_html(report)) for reason in report.reasons)
    assert report.reasons


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "<i>weights.npz"
    save(Checkpoint.from_arrays(random_params(SMALL, 0), config=SMALL), path)
    page = to_html(verify(str(path)))
    assert "&lt;i&gt;weights.npz" in page
    assert "<i>weights" not in page


def test_a_page_is_not_written_over_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    result = run("--html", str(path))
    assert result.exit_code == 2
    assert "by its suffix a checkpoint; give it another one, such as .html" in " ".join(result.stderr.split())
    assert not path.exists()
