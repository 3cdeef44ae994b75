"""Models that do odd things: what is said of each, and that none is taken for what it is not."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import partial
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

from mixer_equiv import (
    ConfigError,
    ConventionWarning,
    InexpressibleError,
    LayoutError,
    MixerConfig,
    MixerEquivError,
    layout_of,
    port,
    verify,
)
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import constrained, random_images, random_params
from mixer_equiv.layouts import Constraint
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.structures import PortMixer

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
    "masks of one image each": (lambda f, x: f(x) * (torch.rand(len(x), 1) < 0.9) / 0.9, "two runs of Odd"),
    "a branch on Python's numbers": (lambda f, x: f(x) * (2 if random.random() < 0.2 else 1), "two runs of Odd"),
    "a branch on NumPy's numbers": (lambda f, x: f(x) * (2 if np.random.rand() < 0.2 else 1), "two runs of Odd"),
    "NumPy's new generators": (lambda f, x: f(x) + np.random.default_rng().random(), "two runs of Odd"),
    "a number of its own input": (lambda f, x: f(x) * float(x.sum()), "depends on the other images of its batch"),
    "only four images": (lambda f, x: f(x[:4]), "returns (4, 7) for 5 images, and no row for each"),
    "all logits in one row": (lambda f, x: f(x).flatten(), "returns (28,) for 4 images, and no row for each"),
    "another order of many": (lambda f, x: f(x) if len(x) < 3 else f(x).flip(0), "depends on the other images"),
    "state": (counting(), "two runs of Odd on the same images differ"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_is_another_function_is_so_for_the_right_reason(kind: str) -> None:
    doing, reason = DIFFERENT[kind]
    report = verify(Odd(doing), image=IMAGE)
    assert report.verdict == "different"
    assert {cause.name for cause in report.causes} <= {"constant", "unknown"}
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


class InDtype(flax.linen.Module):
    """As most Flax code is written: every layer is given the dtype to compute in."""

    config: MixerConfig
    dtype: Any
    gelu: Any = flax.linen.gelu

    @flax.linen.compact
    def __call__(self, x: Any) -> Any:
        config, dtype = self.config, self.dtype
        dense, norm = partial(flax.linen.Dense, dtype=dtype), partial(flax.linen.LayerNorm, dtype=dtype)

        def mlp(x: Any, dim: int) -> Any:
            return dense(x.shape[-1])(self.gelu(dense(dim)(x)))

        x = flax.linen.Conv(config.hidden_dim, config.patch_hw, config.patch_hw, dtype=dtype)(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(config.num_blocks):
            x = x + mlp(norm()(x).mT, config.tokens_mlp_dim).mT
            x = x + mlp(norm()(x), config.channels_mlp_dim)
        return dense(config.num_classes)(norm()(x).mean(axis=1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_flax_models_in_a_dtype_of_their_own_are_verified_in_float64(dtype: Any, activation: str) -> None:
    config = CONFIG.replace(activation=activation)
    gelu = partial(flax.linen.gelu, approximate=activation == "gelu_tanh")
    report = verify(InDtype(config, dtype, gelu), "reference", config=config)
    assert (report.verdict, report.causes) == ("equivalent", ())
    assert any(w.startswith(f"it asks for {np.dtype(dtype).name} itself") for w in report.warnings)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_rounded_constant_of_a_flax_model_is_found_in_any_dtype(dtype: Any) -> None:
    def rounded(x: Any) -> Any:
        return 0.5 * x * (1 + jnp.tanh(0.79 * (x + 0.044715 * x**3)))

    assert verify(InDtype(CONFIG, dtype, rounded), "reference", config=CONFIG).verdict == "different"


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
    """The official function, which leaves things behind, and computes from what it finds of them."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.calls, self.seen, self.by_name = 0, [torch.ones(1)], {"calls": [0]}
        self.counts, self.cache = np.zeros(2), None
        self.register_buffer("average", torch.zeros(CONFIG.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        self.cache = super().forward(images) if self.cache is None else self.cache
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
    assert verify(model, image=IMAGE).verdict == "equivalent"
    assert (model.calls, model.cache, model.seen, model.counts.tolist()) == (0, None, [torch.ones(1)], [0, 0])
    assert model.by_name is held
    assert held == {"calls": [0]}
    assert model.average is average
    assert average.tolist() == [0] * CONFIG.num_classes
    model(torch.zeros(1, *IMAGE))
    assert (model.calls, model.by_name["calls"]) == (1, [1])


def test_autocast_inside_is_said() -> None:
    def doing(forward: Forward, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(x)

    report = verify(Odd(doing), image=IMAGE)
    assert (report.verdict, report.warnings[0].split(",")[0]) == ("equivalent", "it asks for bfloat16 itself")


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


@pytest.mark.parametrize(
    ("doing", "message"),
    [
        (lambda f, x: torch.vmap(lambda one: f(one[None])[0])(x), "torch.vmap and torch.func .* cannot be followed"),
        (_said_nothing, r"nothing said, at test_odd.py:\d+, raise AssertionError"),
    ],
)
def test_what_a_model_raises_is_told_with_a_way_to_it(doing: Any, message: str) -> None:
    with pytest.raises(MixerEquivError, match=message):
        verify(Odd(doing), image=IMAGE)


def test_a_builder_that_makes_nothing_is_refused() -> None:
    def build(config: MixerConfig) -> None:
        TorchMixer(config)

    for call in (lambda: verify(build, config=CONFIG), lambda: verify(TorchMixer(CONFIG), build, config=CONFIG)):
        with pytest.raises(MixerEquivError, match="build made None; expected a model: does it return"):
            call()


def test_a_config_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="config is a dict; it must be a MixerConfig"):
        verify(TorchMixer, config=CONFIG.to_dict())  # type: ignore[arg-type]


class Changed(PortMixer):
    """The official function with one thing more, by `kind`."""

    def __init__(self, kind: str, config: MixerConfig = CONFIG) -> None:
        super().__init__(config)
        self.kind = kind
        self.scale, self.bias = (nn.Parameter(torch.ones(config.hidden_dim)) for _ in "ab")
        if kind == "three layers":
            narrow, wide = config.hidden_dim, config.channels_mlp_dim
            layers = [nn.Linear(narrow, wide), nn.Linear(wide, wide), nn.Linear(wide, narrow)]
            act = nn.GELU("tanh")
            self.blocks[1].mix_channels = nn.Sequential(layers[0], act, layers[1], act, layers[2])

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        if self.kind == "reshape":
            x = x.mT.reshape(x.shape)
        x = x * self.scale + self.bias if self.kind == "affine" else x
        for i, block in enumerate(self.blocks):
            x = block(x, None)
            x = x * 0.5 if self.kind == "constant" and i == 0 else x
        return self.classifier(self.final_norm(x).mean(dim=1))


@pytest.mark.parametrize(
    ("kind", "cause", "found", "place"),
    [
        ("affine", "extra_affine", "a scale and a bias", "before MixerBlock_0/LayerNorm_0"),
        ("reshape", "reshape", "reshaped", "before MixerBlock_0/LayerNorm_0"),
        ("constant", "constant", "* 0.5", "before MixerBlock_1/LayerNorm_0"),
        ("three layers", "unknown", "another value, of add", "MixerBlock_1/channel_mixing/add"),
    ],
)
def test_what_is_more_is_named_where_it_is(kind: str, cause: str, found: str, place: str) -> None:
    report = verify(Changed(kind), image=IMAGE)
    assert report.verdict in ("different", "inexpressible")
    assert [(c.name, c.found) for c in report.causes] == [(cause, found)]
    assert report.causes[0].evidence.startswith(f"in Changed: {place}")


def test_blocks_of_other_widths_are_named_and_nothing_is_said_to_make_them_one() -> None:
    model = PortMixer(CONFIG)
    model.blocks[1] = PortMixer(CONFIG.replace(channels_mlp_dim=CONFIG.channels_mlp_dim + 1)).blocks[1]
    report = verify(model, image=IMAGE)
    assert (report.verdict, report.residual_without_causes) == ("different", None)
    kernel = "MixerBlock_{}/channel_mixing/Dense_0/kernel"
    width = CONFIG.channels_mlp_dim
    said = f"channels_mlp is {width} in {kernel.format(0)} and {width + 1} in {kernel.format(1)}, and should be one"
    assert report.reasons == (said,)


def test_a_stem_that_is_not_found_says_what_it_was_given() -> None:
    report = verify(nn.Sequential(nn.Conv2d(3, 5, 4, 2), nn.Flatten(), nn.Linear(75, 5)), image=(3, 12, 9))
    assert report.verdict == "inexpressible"
    assert report.first_divergence == "stem"
    assert "which was given images (2, 3, 12, 9)" in report.reasons[0]


class Plain(nn.Module):
    """A Mixer with what is unusual in how its parameters are shaped, shared or missing, by `kind`."""

    def __init__(self, kind: str = "", eps: float = 1e-6) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        tokens, hidden, blocks = CONFIG.num_tokens, CONFIG.hidden_dim, range(CONFIG.num_blocks)
        shape = (tokens, hidden) if kind == "both axes" else (hidden,)
        self.stem = nn.Conv2d(CONFIG.in_channels, hidden, CONFIG.patch_hw, CONFIG.patch_hw)
        self.first, self.second = (nn.ModuleList(nn.LayerNorm(shape, eps) for _ in blocks) for _ in "ab")
        self.up = nn.ModuleList(nn.Linear(tokens, CONFIG.tokens_mlp_dim) for _ in blocks)
        self.down = nn.ModuleList(nn.Linear(CONFIG.tokens_mlp_dim, tokens) for _ in blocks)
        self.wide = nn.ModuleList(nn.Linear(hidden, CONFIG.channels_mlp_dim) for _ in blocks)
        self.narrow = nn.ModuleList(nn.Linear(CONFIG.channels_mlp_dim, hidden) for _ in blocks)
        self.last, self.head = nn.LayerNorm(hidden, eps), nn.Linear(hidden, CONFIG.num_classes)

    def embed(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        if self.kind == "by columns":
            return x.mT.flatten(2).mT
        tokens = x.flatten(2).mT
        orders = {"reversed": range(CONFIG.num_tokens)[::-1], "shuffled": (3, 0, 5, 11, 2, 8, 1, 10, 4, 6, 9, 7)}
        return tokens[:, list(orders[self.kind])] if self.kind in orders else tokens

    def norm(self, layer: nn.LayerNorm, x: Tensor) -> Tensor:
        if self.kind != "eps outside the root":
            return layer(x)
        x = x - x.mean(-1, keepdim=True)
        return x / (x.std(-1, keepdim=True, unbiased=False) + self.eps) * layer.weight + layer.bias

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="none" if self.kind == "erf" else "tanh")

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for i, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            no_scale = self.kind == "no scale"
            y = F.layer_norm(x, (CONFIG.hidden_dim,), None, first.bias, self.eps) if no_scale else self.norm(first, x)
            kernel = self.up[i].weight.T if self.kind == "tied" else self.down[i].weight
            x = x + F.linear(self.act(self.up[i](y.mT)), kernel, self.down[i].bias).mT
            x = x + self.narrow[i](self.act(self.wide[i](self.norm(second, x))))
        return self.head(self.norm(self.last, x).mean(1))


def test_a_layer_norm_over_both_axes_with_parameters_of_both_is_named() -> None:
    report = verify(Plain("both axes"), image=IMAGE)
    assert report.verdict == "different"
    assert [(c.name, c.found, c.count) for c in report.causes] == [
        ("layer_norm_axes", "tokens and channels", "4 of 5 LayerNorms")
    ]
    with pytest.raises(InexpressibleError, match="no parameter of it is MixerBlock_0/LayerNorm_0/scale"):
        layout_of(Plain("both axes"), IMAGE)


def test_kernels_that_are_each_others_transposes_are_shared_parameters() -> None:
    report = verify(Plain("tied"), image=IMAGE)
    assert (report.verdict, [cause.name for cause in report.causes]) == ("equivalent_under", ["shared_parameters"])
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12


def test_a_norm_that_one_block_alone_shares_is_named_and_ported_into() -> None:
    model = Plain()
    model.second[1] = model.first[1]
    report = verify(model, image=IMAGE)
    assert (report.verdict, [cause.name for cause in report.causes]) == ("equivalent_under", ["shared_parameters"])
    layout = layout_of(model, IMAGE)
    one = "MixerBlock_1/LayerNorm_0/scale", "MixerBlock_1/LayerNorm_1/scale"
    assert Constraint("shared_parameters", one) in layout.constraints
    params = {
        name: array.astype(np.float32) for name, array in constrained(random_params(CONFIG, 0), layout, CONFIG).items()
    }
    port(params, model, image=IMAGE)
    assert torch.equal(model.first[1].weight, torch.from_numpy(params["MixerBlock_1/LayerNorm_1/scale"]))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("by columns", "in the order of columns"),
        ("reversed", "in another order than by rows"),
        ("shuffled", "in another order than by rows"),
    ],
)
def test_tokens_may_be_in_any_order_and_have_no_layout_then(kind: str, said: str) -> None:
    report = verify(Plain(kind), image=IMAGE)
    assert report.verdict == "equivalent"
    assert max(stage.residual for stage in report.stages) <= 1e-12
    assert f"its tokens are {said}, so that no layout is of its parameters" in report.warnings
    with pytest.raises(InexpressibleError, match=said):
        layout_of(Plain(kind), IMAGE)
    report = verify(Plain(kind, eps=1e-5), image=IMAGE)
    assert [(cause.name, cause.found) for cause in report.causes] == [("layer_norm_eps", "1e-05")]


def test_steps_that_are_not_known_are_not_called_missing_parameters() -> None:
    report = verify(Plain("eps outside the root"), image=IMAGE)
    assert (report.verdict, report.first_divergence) == ("different", "MixerBlock_0/LayerNorm_0")
    assert [cause.name for cause in report.causes] == ["unknown"]
    assert report.reasons[0].startswith("it does something else at MixerBlock_0/LayerNorm_0, MixerBlock_0/LayerNorm_1")


def test_a_constant_is_told_in_full() -> None:
    report = verify(Odd(lambda f, x: f(x) * 1.0000001), image=IMAGE)
    assert [(cause.name, cause.found) for cause in report.causes] == [("constant", "* 1.0000001")]


def test_gradients_that_narrow_layer_norms_make_ill_conditioned_are_rounding() -> None:
    """Two right programs, whose gradients are further apart than 1e-12 with these weights."""
    narrow = {"num_classes": 5, "num_blocks": 4, "patch_size": 2, "image_size": [6, 8], "hidden_dim": 3}
    sizes = {**narrow, "tokens_mlp_dim": 5, "channels_mlp_dim": 6}
    report = verify(PortMixer(MixerConfig.from_dict(sizes)), "reference", image=(3, 6, 8), seed=61, gradients=True)
    assert report.gradients is not None
    assert report.gradients.float32 is not None
    assert 1e-12 < report.gradients.residual < 1e-8 * report.gradients.float32
    assert report.verdict == "equivalent"
    assert "is rounding, since in float32 it is" in report.warnings[0]


def test_a_scale_that_is_not_there_is_named() -> None:
    report = verify(Plain("no scale"), image=IMAGE)
    assert [(cause.name, cause.found) for cause in report.causes] == [
        ("absent_parameters", "MixerBlock_{i}/LayerNorm_0/scale all ones")
    ]


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_an_eps_of_nothing_is_told_from_a_small_one(eps: float) -> None:
    report = verify(Plain(eps=eps), image=IMAGE)
    assert [(cause.name, cause.found) for cause in report.causes] == [("layer_norm_eps", str(eps))]


@pytest.mark.parametrize("kind", ["", "erf"])
def test_what_is_expected_is_what_ours_is_made_to_compute(kind: str) -> None:
    config = CONFIG.replace(activation="relu", layer_norm_eps=1e-3)
    for sides in ((Plain(kind), "reference"), ("reference", Plain(kind))):
        report = verify(*sides, config=config, gradients=False)
        assert report.verdict == "equivalent_under"
        assert {(cause.name, cause.found, cause.expected) for cause in report.causes} == {
            ("activation", "gelu" if kind else "gelu_tanh", "relu"),
            ("layer_norm_eps", "1e-06", "0.001"),
        }
        assert all("in Plain: everywhere" in cause.evidence for cause in report.causes)


def test_causes_of_code_are_named_beside_differing_weights() -> None:
    ours, theirs = Plain("erf", eps=1e-5), Plain()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        theirs.head.bias[0] += 1
    report = verify(ours, theirs, weights="given", image=IMAGE)
    assert report.verdict == "different"
    assert [(cause.name, cause.kind) for cause in report.causes] == [
        ("weights", "port"),
        ("layer_norm_eps", "code"),
        ("activation", "code"),
    ]


def test_weights_by_a_models_own_names_are_read() -> None:
    model, state = Plain(), Plain().state_dict()
    assert verify(model, weights=state, image=IMAGE).verdict == "equivalent"
    assert port(state, model, image=IMAGE).layout.name == "Plain"
    assert all(torch.equal(model.state_dict()[name], array) for name, array in state.items())
    with pytest.raises(LayoutError, match=r"give image=\(channels, height, width\)"):
        port(state, model)


def test_a_port_that_rounds_or_leaves_parameters_says_so() -> None:
    model = Plain()
    model.unused = nn.Linear(3, 3)
    with pytest.warns(ConventionWarning) as caught:
        port(random_params(CONFIG, 0), model.half(), image=IMAGE)
    said = [str(warning.message) for warning in caught]
    assert any("rounds 30 of 30 arrays to float16" in text for text in said)
    assert "parameters of Plain that stay as they were: unused.weight, unused.bias" in said


def test_weights_that_are_computed_from_others_are_found_and_ported_into() -> None:
    model, params = Plain(), random_params(CONFIG, 3)
    for layer in (model.wide[0], model.down[1]):
        nn.utils.parametrizations.weight_norm(layer)
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.mapping["MixerBlock_0/channel_mixing/Dense_0/kernel"] == "wide.0.weight"
    assert report.gradients is not None
    assert report.gradients.residual <= 1e-12
    said = "computed from other parameters, and taken for parameters here: down.1.weight, wide.0.weight"
    assert said in report.warnings
    with pytest.warns(ConventionWarning, match=r"computes down.1.weight, wide.0.weight from other parameters"):
        port(params, model.double(), image=IMAGE)
    wanted = params["MixerBlock_0/channel_mixing/Dense_0/kernel"].T
    np.testing.assert_allclose(model.wide[0].weight.detach(), wanted, rtol=1e-14)
    images = random_images(CONFIG, 4)
    logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
    assert residual(logits, ReferenceMixer(CONFIG)(params, images)) <= 1e-12


def test_a_model_without_a_layout_says_why() -> None:
    model = Plain()
    nn.utils.parametrizations.orthogonal(model.wide[0])  # which cannot be any array
    with pytest.raises(InexpressibleError, match="kernel is computed from "):
        layout_of(model, IMAGE)


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


class Drawing(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        return FlaxMixer(CONFIG)(images) * (2 if np.random.rand() < 0.2 else 1)


class NnxDropping(nnx.Module):
    def __init__(self) -> None:
        self.rngs = nnx.Rngs(3)
        self.body = NnxMixer(CONFIG, rngs=self.rngs)

    def __call__(self, images: Any) -> Any:
        logits = self.body(images)
        return logits * jax.random.bernoulli(self.rngs.dropout(), 0.9, (len(logits), 1)) / 0.9


@pytest.mark.parametrize("model", [Drawing, NnxDropping])
def test_flax_models_that_are_random_are_so_for_the_right_reason(model: Any) -> None:
    report = verify(model(), image=IMAGE)
    assert (report.verdict, report.causes) == ("different", ())
    assert any("two runs" in reason for reason in report.reasons)


class Training(flax.linen.Module):
    """Drops out by default."""

    @flax.linen.compact
    def __call__(self, images: Any, train: bool = True) -> Any:
        return flax.linen.Dropout(0.5, deterministic=not train)(FlaxMixer(CONFIG)(images))


def test_a_mode_of_training_by_default_is_not_used() -> None:
    report = verify(Training(), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    assert "it was called with train=False" in report.warnings


class Stacked(nnx.Module):
    """Blocks with dropout, made and run as one stack with a key for each."""

    def __init__(self) -> None:
        @nnx.split_rngs(splits=CONFIG.num_blocks)
        @nnx.vmap
        def blocks(rngs: nnx.Rngs) -> Any:
            return DroppingBlock(rngs)

        rngs = nnx.Rngs(0)
        self.body = NnxMixer(CONFIG.replace(num_blocks=1), rngs=rngs)
        self.blocks = blocks(rngs)

    def __call__(self, images: Any) -> Any:
        body = self.body
        x = body.stem(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        x = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
        return body.head(body.pre_head_layer_norm(x).mean(axis=1))


class DroppingBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.block = NnxMixer(CONFIG.replace(num_blocks=1), rngs=rngs).MixerBlock_0
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.block(x))


def test_stacked_blocks_with_a_key_each_are_followed() -> None:
    report = verify(Stacked(), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    assert any("in train mode it computes something else" in warning for warning in report.warnings)


class Bits(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        logits = FlaxMixer(CONFIG)(images)
        return logits + 0 * jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)


class Wrapped(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        return FlaxMixer(CONFIG, name="inner")(images)


def test_flax_models_that_look_at_bits_or_are_bound_are_followed() -> None:
    assert verify(Bits(), image=IMAGE, gradients=False).verdict == "equivalent"
    params = unflatten(random_params(CONFIG, 1))
    report = verify(Wrapped().bind({"params": {"inner": params}}), weights="given", image=IMAGE)
    assert report.verdict == "equivalent"


class Batched(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, images: Any) -> Any:
        return flax.linen.BatchNorm(use_running_average=True)(FlaxMixer(CONFIG)(images))


class NnxBatched(nnx.Module):
    def __init__(self) -> None:
        self.body = NnxMixer(CONFIG, rngs=nnx.Rngs(0))
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
    assert [cause.name for cause in report.causes] == ["extra_affine"]
    assert "the collections batch_stats are left as init makes them" in report.warnings


def test_an_image_that_one_of_our_models_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the image is 6x12, and this model of torch takes 8x9"):
        verify(TorchMixer(CONFIG), "flax", image=(3, 6, 12))
