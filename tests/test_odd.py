"""Models that do odd things: what is said of each, and that none is taken for what it is not."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import Tensor, nn

from mixer_equiv import ConfigError, verify
from mixer_equiv.equivalence.subject import DEFAULT_CONFIG
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.structures import PortMixer

CONFIG = DEFAULT_CONFIG.replace(num_blocks=2)
IMAGE = CONFIG.in_channels, *CONFIG.image_hw
Forward = Callable[[Tensor], Any]


class Odd(PortMixer):
    """The official function, of which `doing` makes something else."""

    def __init__(self, doing: Callable[[Forward, Tensor], Any]) -> None:
        super().__init__(CONFIG)
        self.doing = doing

    def forward(self, images: Tensor) -> Any:
        return self.doing(super().forward, images)


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
    "a reached clamp": (lambda f, x: f(x).clamp(-1, 1), "made of that by no known operation"),
    "another sign for some": (lambda f, x: f(x) if f(x).mean() > 0 else -f(x), "Odd"),
    "another rank": (lambda f, x: f(x)[..., None, None].expand(-1, -1, 2, 2), "and what it returns is (2, 7, 2, 2)"),
    "a vector": (lambda f, x: f(x).sum(-1), "and what it returns is (2,)"),
    "classes": (lambda f, x: f(x).argmax(-1), "and what it returns is (2,)"),
    "NaN": (lambda f, x: f(x) * float("nan"), "its output holds NaN or infinity"),
    "infinity in one class": (lambda f, x: f(x) / torch.tensor([1.0] * 6 + [0.0]), "holds NaN or infinity"),
    "a number of its own input": (lambda f, x: f(x) * float(x.sum()), "with some weights and another with others"),
    "state": (counting(), "departs from the NumPy reference at logits"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_is_another_function_is_so_for_the_right_reason(kind: str) -> None:
    doing, reason = DIFFERENT[kind]
    report = verify(Odd(doing), image=IMAGE)
    assert report.verdict == "different"
    assert {cause.name for cause in report.causes} <= {"constant", "unknown"}
    assert any(reason in text for text in report.reasons), report.reasons


@pytest.mark.parametrize(
    ("doing", "found"),
    [
        (lambda f, x: f(x.flip(-1)), "flip"),
        (lambda f, x: f(x.flip(1)), "flip"),
        (lambda f, x: f(x.clamp(-1, 1)), "clamp"),
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


def test_an_unreached_clamp_is_said_to_have_been_idle() -> None:
    report = verify(Odd(lambda f, x: f(x).clamp(-50, 50)), image=IMAGE)
    assert report.verdict == "equivalent"
    assert "not seen at work, and so not compared: clamp, whose results were their inputs" in report.warnings
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
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert verify(model, image=IMAGE).verdict == "equivalent"
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


# Flax


@jax.custom_vjp
def doubled(x: Any) -> Any:
    return x


doubled.defvjp(lambda x: (x, None), lambda _, gradient: (2 * gradient,))


class OddFlax(flax.linen.Module):
    """The official function with a head of a kind."""

    kind: str

    @flax.linen.compact
    def __call__(self, images: Any, train: bool) -> Any:
        x = FlaxMixer(CONFIG.replace(num_classes=0), name="body")(images)
        if self.kind == "stop_gradient":
            x = jax.lax.stop_gradient(x)
        if self.kind == "dropout":
            x = flax.linen.Dropout(0.5, deterministic=not train)(x)
        init = flax.linen.initializers.lecun_normal()
        if self.kind == "partitioned":
            init = flax.linen.with_partitioning(init, (None, "model"))
        dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.get(self.kind)
        x = flax.linen.Dense(CONFIG.num_classes, dtype=dtype, kernel_init=init)(x)
        return doubled(x) if self.kind == "custom_vjp" else x


@pytest.mark.parametrize("kind", ["", "partitioned", "dropout", "float32", "bfloat16"])
def test_flax_models_with_a_required_mode_are_called_in_that_of_evaluation(kind: str) -> None:
    report = verify(OddFlax(kind), image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12
    assert "it was called with train=False" in report.warnings
    asked = f"it asks for {kind} itself, and was verified in float64 throughout"
    assert (asked in report.warnings) == (kind in ("float32", "bfloat16"))


@pytest.mark.parametrize("kind", ["stop_gradient", "custom_vjp"])
def test_flax_models_with_other_gradients_are_different(kind: str) -> None:
    report = verify(OddFlax(kind), image=IMAGE)
    assert report.verdict == "different"
    assert report.residual is not None
    assert report.residual <= 1e-12
    assert "the gradients differ by" in report.reasons[0]


class Batched(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        return flax.linen.BatchNorm(use_running_average=True)(FlaxMixer(CONFIG)(images))


class NnxBatched(nnx.Module):
    def __init__(self) -> None:
        from mixer_equiv.models.nnx import MlpMixer

        self.body = MlpMixer(CONFIG, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(CONFIG.num_classes, rngs=nnx.Rngs(0))

    def __call__(self, images: Any) -> Any:
        return self.norm(self.body(images))


class TorchBatched(PortMixer):
    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.last = nn.BatchNorm1d(CONFIG.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(super().forward(images))


@pytest.mark.parametrize("model", [NnxBatched, TorchBatched])
def test_batch_norm_is_another_function_and_its_statistics_stay(model: Any) -> None:
    made = model()
    before = str(nnx.state(made)) if model is NnxBatched else made.last.running_mean.tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = verify(made, image=IMAGE)
    assert report.verdict != "equivalent"
    assert not caught
    assert any("in train mode it computes something else" in warning for warning in report.warnings)
    assert before == (str(nnx.state(made)) if model is NnxBatched else made.last.running_mean.tolist())


class Counting(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        self.variable("counters", "calls", lambda: np.zeros((), np.int32))
        return FlaxMixer(CONFIG)(images)


def test_collections_beside_the_parameters_are_left_as_init_makes_them() -> None:
    report = verify(Counting(), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    assert "the collections counters are left as init makes them" in report.warnings
    report = verify(Batched(), image=IMAGE)
    assert report.verdict == "different"
    assert [cause.name for cause in report.causes] == ["extra_scale"]
    assert "the collections batch_stats are left as init makes them" in report.warnings


def test_an_image_that_one_of_our_models_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the image is 6x12, and this model of torch takes 8x9"):
        verify(TorchMixer(CONFIG), "flax", image=(3, 6, 12))
