"""Deviations of other people's models: what is more, missing, shared or of another shape, named where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv import (
    ConventionWarning,
    InexpressibleError,
    LayoutError,
    MixerConfig,
    layout_of,
    port,
    verify,
)
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.drawn_weights import constrained, random_images, random_params
from mixer_equiv.layouts import Constraint
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from tests.support.odd import CONFIG, IMAGE, Odd
from tests.support.structures import PortMixer


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
    assert report.verdict == "inexpressible"
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


@pytest.mark.parametrize(("other", "scaling"), [("flax", 1e-8), ("reference", 1e-7)])
def test_gradients_that_narrow_layer_norms_make_ill_conditioned_are_rounding(other: str, scaling: float) -> None:
    """Two right programs, whose gradients are further apart than 1e-12 with these weights.

    The reference computes in float64 alone, so that in float32 only one side is off.
    """
    narrow = {"num_classes": 5, "num_blocks": 4, "patch_size": 2, "image_size": [6, 8], "hidden_dim": 3}
    sizes = {**narrow, "tokens_mlp_dim": 5, "channels_mlp_dim": 6}
    report = verify(PortMixer(MixerConfig.from_dict(sizes)), other, image=(3, 6, 8), seed=61, gradients=True)
    assert report.gradients is not None
    assert report.gradients.float32 is not None
    assert 1e-12 < report.gradients.residual < scaling * report.gradients.float32
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
    (said,) = (str(warning.message).splitlines() for warning in caught)
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
