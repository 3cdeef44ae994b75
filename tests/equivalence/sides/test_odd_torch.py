"""Torch models that do odd things around the official function: what is said of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv import (
    ConfigError,
    MixerConfig,
    MixerEquivError,
    verify,
)
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.odd import CONFIG, IMAGE, Forward, Odd
from tests.support.structures import PortMixer


def counting() -> Callable[[Forward, Tensor], Tensor]:
    calls = []

    def doing(forward: Forward, x: Tensor) -> Tensor:
        calls.append(1)
        return forward(x) * (1.0 if len(calls) <= 3 else 2.0)

    return doing


DIFFERENT: dict[str, tuple[Callable[[Forward, Tensor], Any], str]] = {
    "dropout that is always on": (lambda f, x: F.dropout(f(x), 0.3), "two runs of Odd on the same images differ"),
    "noise": (lambda f, x: f(x) + 1e-8 * torch.randn(7), "two runs of Odd on the same images differ"),
    "a little larger": (lambda f, x: f(x) * (1 + 1e-10), "departs from the NumPy reference at logits"),
    "another sign for some": (lambda f, x: f(x) if f(x).mean() > 0 else -f(x), "Odd"),
    "another rank": (lambda f, x: f(x)[..., None, None].expand(-1, -1, 2, 2), "and what it returns is (2, 7, 2, 2)"),
    "a vector": (lambda f, x: f(x).sum(-1), "and what it returns is (2,)"),
    "classes": (lambda f, x: f(x).argmax(-1), "and what it returns is (2,)"),
    "masks of one image each": (lambda f, x: f(x) * (torch.rand(len(x), 1) < 0.9) / 0.9, "two runs of Odd"),
    "a branch on Python's numbers": (lambda f, x: f(x) * (2 if random.random() < 0.2 else 1), "two runs of Odd"),
    "a branch on NumPy's numbers": (lambda f, x: f(x) * (2 if np.random.rand() < 0.2 else 1), "two runs of Odd"),
    "NumPy's new generators": (lambda f, x: f(x) + np.random.default_rng().random(), "two runs of Odd"),
    "a number of its own input": (lambda f, x: f(x) * float(x.sum()), "depends on the other images of its batch"),
    "only four images": (lambda f, x: f(x[:4]), "returns (4, 7) for 5 images, and no row for each"),
    "all logits in one row": (lambda f, x: f(x).flatten(), "returns (35,) for 5 images, and no row for each"),
    "another order of many": (lambda f, x: f(x) if len(x) < 3 else f(x).flip(0), "depends on the other images"),
    "state": (counting(), "computes what depends on the calls before"),
}


# What the trials of a model name, where they see the difference.
BY_TRIALS = {
    "another sign for some": ("branch", "neighbours"),
    "a number of its own input": ("neighbours",),
    "another order of many": ("neighbours",),
    "state": ("memory",),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_is_another_function_is_so_for_the_right_reason(kind: str) -> None:
    doing, reason = DIFFERENT[kind]
    report = verify(Odd(doing), image=IMAGE)
    assert report.verdict == "different"
    assert {cause.name for cause in report.causes} <= {"constant", "unknown", *BY_TRIALS.get(kind, ())}
    assert any(reason in text for text in report.reasons), report.reasons


@pytest.mark.parametrize(
    ("doing", "reason"),
    [
        (lambda f, x: f(x) * float("nan"), "its output holds NaN or infinity"),
        (lambda f, x: f(x) / torch.tensor([1.0] * 6 + [0.0]), "its output holds NaN or infinity"),
        (lambda f, x: torch.ones(len(x), 7), "its output does not depend on the images by any operation"),
    ],
)
def test_where_no_output_can_be_followed_nothing_is_compared(doing: Any, reason: str) -> None:
    report = verify(Odd(doing), image=IMAGE)
    assert (report.verdict, report.causes) == ("nothing_compared", ())
    assert report.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("doing", "found"),
    [
        (lambda f, x: f(x.flip(-1)), "flip"),
        (lambda f, x: f(x.flip(1)), "flip"),
        (
            lambda f, x: f(
                (x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.3, 0.4, 0.5])[:, None, None]
            ),
            "div",
        ),
    ],
)
def test_what_is_done_to_the_images_first_is_named(doing: Any, found: str) -> None:
    report = verify(Odd(doing), image=IMAGE)
    assert (report.verdict, report.first_divergence) == ("different", "stem")
    assert [(cause.name, cause.found, cause.expected) for cause in report.causes] == [
        ("preprocessing", found, "nothing")
    ]


@pytest.mark.parametrize(
    ("doing", "place"),
    [(lambda f, x: f(x.clamp(-1, 1)), "before stem"), (lambda f, x: f(x).clamp(-1, 1), "head")],
)
def test_a_clamp_of_usual_numbers_is_named(doing: Any, place: str) -> None:
    report = verify(Odd(doing), image=IMAGE)
    assert report.verdict == "different"
    (cause,) = report.causes
    assert (cause.name, cause.found, cause.expected) == ("limit", "between -1 and 1", "nothing")
    assert cause.evidence.startswith(f"in Odd: {place}")


def test_an_unreached_clamp_is_said_to_have_been_idle() -> None:
    report = verify(Odd(lambda f, x: f(x).clamp(-1e6, 1e6)), image=IMAGE)
    assert report.verdict == "equivalent"
    (said,) = report.warnings
    assert said.startswith("not seen at work, and so not compared: clamp at ")
    assert said.endswith(", whose results were their inputs, or one number throughout")
    report = verify(Odd(lambda f, x: f(x).clamp(-50, 50)), image=IMAGE)
    assert (report.verdict, [cause.name for cause in report.causes]) == ("different", ["limit"])
    assert "clamp at " in report.causes[0].evidence
    assert verify(Odd(lambda f, x: f(x)), image=IMAGE).warnings == ()


def test_lower_precision_inside_is_said() -> None:
    report = verify(Odd(lambda f, x: f(x.float()).to(torch.bfloat16)), image=IMAGE)
    assert report.verdict == "equivalent"
    assert [w.split(",")[0] for w in report.warnings] == ["it asks for float32 itself", "it asks for bfloat16 itself"]


@pytest.mark.parametrize(
    "doing",
    [
        lambda f, x: (f(x), f(x) * 2),
        lambda f, x: {"logits": f(x), "loss": None},
        lambda f, x: [f(x)],
        lambda f, x: f(x)[:, :, None, None],
    ],
)
def test_logits_are_found_in_what_is_returned(doing: Any) -> None:
    assert verify(Odd(doing), image=IMAGE).verdict == "equivalent"


class Headless(PortMixer):
    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x).mean(dim=1)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # torch's own
def test_a_model_without_a_head_is_compared_on_its_features_and_one_of_no_classes_is_another() -> None:
    report = verify(Headless(CONFIG), image=IMAGE)
    assert (report.verdict, report.stages[-1].name) == ("equivalent", "pooled")
    report = verify(PortMixer(CONFIG.replace(num_classes=0)), image=IMAGE)
    assert report.verdict == "different"
    assert "what follows is not head" in report.reasons[0]


def test_generators_are_left_as_they_were() -> None:
    def drawing(f: Forward, x: Tensor) -> Tensor:
        return f(x) + 0 * (random.random() + np.random.rand() + torch.rand(1))

    model = Odd(drawing)
    random.random(), np.random.rand(), torch.rand(1)  # any state but a fresh one
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    assert "it draws random numbers in eval mode, which moved no output in 32 runs" in report.warnings
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


class Leaving(PortMixer):
    """The official function, which leaves things behind, of which it reads none."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.calls, self.seen, self.by_name = 0, [torch.ones(1)], {"calls": [0]}
        self.counts, self.cache = np.zeros(2), None
        self.register_buffer("average", torch.zeros(CONFIG.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        self.cache = super().forward(images)
        self.calls += 1
        self.seen.append(self.cache)
        self.by_name["calls"][0] += 1
        self.by_name["logits"] = self.cache
        self.counts += 1
        self.average.mul_(0.9).add_(self.cache.mean(0))
        self.average = self.average + 1
        return self.cache


def test_what_a_pass_leaves_in_a_module_is_taken_back() -> None:
    model = Leaving()
    held, average = model.by_name, model.average
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    assert set(report.notices) == {"state_written", "constant_buffer"}
    assert (model.calls, model.cache, model.seen, model.counts.tolist()) == (0, None, [torch.ones(1)], [0, 0])
    assert model.by_name is held
    assert held == {"calls": [0]}
    assert model.average is average
    assert average.tolist() == [0] * CONFIG.num_classes
    model(torch.zeros(1, *IMAGE))
    assert (model.calls, model.by_name["calls"]) == (1, [1])


def test_a_plain_tensor_that_meets_the_images_is_named() -> None:
    model = Odd(lambda f, x: f(x) * model.gate)
    model.gate = torch.ones(CONFIG.num_classes)
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    said = "tensors that are in no state_dict meet the images, with the values that they have: gate"
    assert said in report.warnings


def test_autocast_inside_is_said() -> None:
    def doing(forward: Forward, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x)

    report = verify(Odd(doing), image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.warnings[0].startswith("it asks for bfloat16 itself (by autocast), and was verified in float64")


def test_inference_mode_changes_nothing() -> None:
    model = PortMixer(CONFIG)
    with torch.inference_mode():
        report = verify(model, image=IMAGE)
        assert torch.is_inference_mode_enabled()
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12


def test_a_head_of_one_class_is_found() -> None:
    assert verify(PortMixer(CONFIG.replace(num_classes=1)), image=IMAGE).verdict == "equivalent"


def test_rows_of_another_shape_are_said() -> None:
    report = verify(Odd(lambda f, x: f(x)[:, None]), image=IMAGE)
    assert report.verdict == "equivalent"
    assert "it returns (2, 1, 7), which is read as (2, 7)" in report.warnings


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_a_model_does_not_keep_are_not_compared(mode: Any) -> None:
    report = verify(Odd(lambda f, x: mode()(f)(x)), image=IMAGE)
    assert (report.verdict, report.gradients) == ("equivalent", None)
    assert any("gradients are not compared" in warning for warning in report.warnings)


def _said_nothing(forward: Forward, x: Tensor) -> Tensor:
    raise AssertionError


def test_what_a_model_raises_is_told_with_a_way_to_it() -> None:
    message = r"nothing said, at test_odd_torch.py:\d+, raise AssertionError"
    with pytest.raises(MixerEquivError, match=message):
        verify(Odd(_said_nothing), image=IMAGE)


def test_the_size_of_the_images_of_a_model_that_raised_is_asked_for() -> None:
    with pytest.raises(MixerEquivError) as raised:
        verify(PortMixer(CONFIG), image=(3, 16, 16))
    shown = str(raised.value)
    assert shown.startswith("PortMixer raised RuntimeError when it was run: ")
    assert shown.endswith(
        "It was run on images of 3x16x16 (channels x height x width): is image=, on the command line --image, right?"
    )
    assert shown.count("It was run on") == 1


def test_a_model_that_takes_the_channels_last_is_called_so() -> None:
    report = verify(Odd(lambda f, x: f(x.permute(0, 3, 1, 2))), image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert [warning for warning in report.warnings if "(batch, height, width, channels)" in warning] == [
        "it raises on images (batch, channels, height, width), as torch has them, and was called with "
        "(batch, height, width, channels)"
    ]
    twice = verify(Odd(lambda f, x: 2 * f(x.permute(0, 3, 1, 2))), image=IMAGE)
    assert twice.verdict != "equivalent"


def test_a_model_that_runs_on_usual_images_is_called_with_these_alone() -> None:
    report = verify(Odd(lambda f, x: f(x.permute(0, 3, 1, 2) if x.shape[1:] == (8, 9, 3) else x)), image=IMAGE)
    assert not any("(batch, height, width, channels)" in warning for warning in report.warnings)


def test_an_output_without_an_axis_of_images_is_said_by_its_shape() -> None:
    report = verify(Odd(lambda f, x: f(x).squeeze()), image=IMAGE)
    (cause,) = report.causes
    assert (report.verdict, cause.name) == ("different", "neighbours")
    assert "it returns shape (7,) for one image, not (1, 7)" in cause.evidence


class _Scaling(PortMixer):
    """The official model, whose weights are other ones once they were loaded."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict({key: 2 * value for key, value in state.items()}, prefix, *others)


@pytest.mark.parametrize(("model", "is_told"), [(_Scaling(CONFIG), True), (PortMixer(CONFIG), False)])
def test_loading_by_code_of_its_own_is_said(model: nn.Module, is_told: bool) -> None:
    expected = "hooks on loading or saving a state_dict are not run: those of the model"
    assert (expected in verify(model, image=IMAGE).warnings) == is_told


def test_a_lazy_model_is_to_be_called_first() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 4, 4), nn.Flatten(), nn.LazyLinear(7))
    with pytest.raises(MixerEquivError) as raised:
        verify(model, image=IMAGE)
    assert str(raised.value) == (
        "Sequential has parameters without shapes, which its first call gives them: 0.weight, 0.bias, 2.weight and 1 "
        f"more; call it once on an image before: model(torch.zeros{(1, *IMAGE)})"
    )


def test_a_builder_that_makes_nothing_is_refused() -> None:
    def build(config: MixerConfig) -> None:
        TorchMixer(config)

    for call in (lambda: verify(build, config=CONFIG), lambda: verify(TorchMixer(CONFIG), build, config=CONFIG)):
        with pytest.raises(MixerEquivError, match="build made None; expected a model: does it return"):
            call()


def test_a_config_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="config is a dict; it must be a MixerConfig"):
        verify(TorchMixer, config=CONFIG.to_dict())


@pytest.mark.parametrize(("dropout", "is_told"), [(0.0, False), (0.5, True)])
def test_attention_draws_random_numbers_only_where_it_drops_weights(dropout: float, is_told: bool) -> None:
    def beside(f: Forward, x: Tensor) -> Tensor:
        return f(x) + 0 * F.scaled_dot_product_attention(x, x, x, dropout_p=dropout).mean()

    report = verify(Odd(beside), image=IMAGE)
    assert report.verdict == "equivalent"
    assert any("draws random numbers" in warning for warning in report.warnings) == is_told


class Attending(nn.Module):
    """Mixes the tokens of a stream by attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.three = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        q, k, v = self.three(self.norm(x)).chunk(3, -1)
        return x + self.mixed(q, k, v)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class AttendingStepwise(Attending):
    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) @ v


class MultiHead(Attending):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.three = nn.MultiheadAttention(dim, 1, batch_first=True)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        y = self.norm(x)
        return x + self.three(y, y, y, need_weights=False)[0]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (Attending, "it weights values by a softmax of others, as attention does, first at "),
        (AttendingStepwise, "it weights values by a softmax of others, as attention does, first at "),
        (MultiHead, "names of its parameters are those of a model with attention"),
    ],
)
def test_attention_in_the_place_of_token_mixing_is_called_so(block: type[Attending], said: str) -> None:
    model = PortMixer(CONFIG)
    for i in range(len(model.blocks)):
        model.blocks[i] = block(CONFIG.hidden_dim)
    report = verify(model, image=IMAGE)
    assert report.verdict in ("nothing_compared", "inexpressible")
    assert any(reason.startswith(said) for reason in report.reasons), report.reasons
    assert not any("random" in warning for warning in report.warnings)
