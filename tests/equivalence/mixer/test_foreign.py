"""Models that are not ours: their layout found by values, weights put into them, and the verdict on them."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import textwrap
from typing import Any

import flax.linen as flax_nn
import jax
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    ConfigError,
    ConventionWarning,
    ConversionError,
    InexpressibleError,
    MixerConfig,
    MixerEquivError,
    assert_equivalent,
    compare,
    convert,
    layout_of,
    load,
    port,
    save,
    verify,
)
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints.differences import differing
from mixer_equiv.cli import app
from mixer_equiv.data import digits
from mixer_equiv.equivalence.record.torch import find_unlisted_parameters
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.locate import import_timm
from mixer_equiv.equivalence.sides.weights import random_params
from mixer_equiv.layouts import LINEN, Row
from mixer_equiv.layouts.custom import layout_from_file
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.structures import (
    PORTS,
    JeonsworldMixer,
    LucidrainsMixer,
    MmpretrainMixer,
    OfficialMixer,
    PortMixer,
    ScenicMixer,
    TutorialMixer,
    as_official,
    run_torch,
    timm_mixer,
)
from tests.support.structures.foreign import FOREIGN

CONFIG = DEFAULT_CONFIG
IMAGE = CONFIG.in_channels, *CONFIG.image_hw
EQUAL = MixerConfig(
    num_classes=16,
    num_blocks=11,
    patch_size=4,
    image_size=16,
    in_channels=4,
    hidden_dim=16,
    tokens_mlp_dim=16,
    channels_mlp_dim=16,
)


def in_float32(config: MixerConfig, seed: int) -> dict[str, np.ndarray]:
    """Random weights in the dtype of a new model."""
    return {name: array.astype(np.float32) for name, array in random_params(config, seed).items()}


PUBLIC = {
    "timm": timm_mixer,
    "jankrepl": TutorialMixer,
    "lucidrains": LucidrainsMixer,
    "jeonsworld": JeonsworldMixer,
    "mmpretrain": MmpretrainMixer,
}


def names_and_axes(layout: Any, depth: int) -> dict[str, tuple[str, str]]:
    return {name: (b.foreign, b.row.foreign_axes) for name, b in layout.bindings(depth).items()}


# Layouts


@pytest.mark.parametrize("config", [CONFIG, EQUAL], ids=["all different", "all equal"])
@pytest.mark.parametrize("name", PUBLIC)
def test_the_layout_of_a_public_port_is_found_as_the_table_has_it(name: str, config: MixerConfig) -> None:
    found = layout_of(PUBLIC[name](config), (config.in_channels, *config.image_hw))
    known = LAYOUTS[name]
    assert names_and_axes(found, config.num_blocks) == names_and_axes(known, config.num_blocks)
    assert found.computes == known.computes


@pytest.mark.parametrize("name", PORTS)
def test_what_a_port_shares_ties_or_lacks_is_found(name: str) -> None:
    arguments = PORTS[name]
    found = layout_of(PortMixer(CONFIG, **arguments), IMAGE)
    said = "\n".join(map(str, found.constraints))
    assert ("LayerNorm_1/scale equal to MixerBlock_{i}/LayerNorm_0/scale" in said) == bool(
        arguments.get("shared_norm") or arguments.get("norm_all")
    )
    assert ("Dense_0/kernel the same in all blocks" in said) == bool(arguments.get("tied_blocks"))
    assert ("stem/bias all zeros" in said) == (not arguments.get("stem_bias", True))


def test_layouts_of_flax_models_are_found() -> None:
    ours = layout_of(FlaxMixer(CONFIG), IMAGE)
    assert names_and_axes(ours, 12) == names_and_axes(LINEN, 12)
    assert names_and_axes(layout_of(NnxMixer(CONFIG, rngs=nnx.Rngs(0)), IMAGE), 12) == names_and_axes(LINEN, 12)
    config = CONFIG
    sizes = config.patch_hw, config.num_classes, config.num_blocks, config.hidden_dim
    widths = config.tokens_mlp_dim, config.channels_mlp_dim
    assert names_and_axes(layout_of(OfficialMixer(*sizes, *widths), IMAGE), 12) == names_and_axes(LINEN, 12)
    scenic = layout_of(ScenicMixer(CONFIG), IMAGE)
    assert names_and_axes(scenic, 12) == names_and_axes(LAYOUTS["scenic"], 12)


def test_names_without_a_rule_have_a_row_for_each_block() -> None:
    model = PortMixer(CONFIG.replace(num_blocks=3))
    model.blocks = nn.ModuleDict(zip(("one", "two", "three"), model.blocks, strict=True))

    def forward(images: torch.Tensor) -> torch.Tensor:
        x = model.embed(images)
        for block in model.blocks.values():
            x = block(x)
        return model.classifier(model.final_norm(x).mean(dim=1))

    model.forward = forward
    config = CONFIG.replace(num_blocks=3)
    layout = layout_of(model, IMAGE)
    assert Row("MixerBlock_1/LayerNorm_0/scale", "blocks.two.norm_tokens.weight", "hidden") in layout.rows
    params = in_float32(config, 0)
    written = convert(params, to=layout, config=config)
    assert not differing(convert(written, to="linen").arrays, params)
    result = port(params, model)
    assert torch.equal(model.blocks["two"].norm_tokens.weight, result["blocks.two.norm_tokens.weight"].float())


class Alternating(nn.Module):
    """Two layers a block in one Sequential, norms in one list: names that count every other, and on from the blocks."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        d, s = config.hidden_dim, config.num_tokens
        widths = (s, config.tokens_mlp_dim), (d, config.channels_mlp_dim)
        self.stem = nn.Conv2d(config.in_channels, d, config.patch_hw, config.patch_hw)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU("tanh"), nn.Linear(mlp_dim, dim))
            for _ in range(config.num_blocks)
            for dim, mlp_dim in widths
        )
        self.norms = nn.ModuleList(nn.LayerNorm(d, 1e-6) for _ in range(2 * config.num_blocks + 1))
        self.head = nn.Linear(d, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2).mT
        for i in range(0, len(self.layers), 2):
            x = x + self.layers[i](self.norms[i](x).mT).mT
            x = x + self.layers[i + 1](self.norms[i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


def test_names_that_count_every_other_are_a_rule_for_any_depth(tmp_path: Any) -> None:
    layout = layout_of(Alternating(CONFIG.replace(num_blocks=3)), IMAGE)
    assert Row("MixerBlock_{i}/LayerNorm_1/scale", "norms.{2i+1}.weight", "hidden") in layout.rows
    assert Row("pre_head_layer_norm/scale", "norms.{2L}.weight", "hidden") in layout.rows
    described = tmp_path / "layout.toml"
    described.write_text(layout.to_toml())
    deeper = Alternating(CONFIG)
    params = random_params(CONFIG, 0)
    state = convert(params, to=layout_from_file(described, {}), config=CONFIG)
    deeper.load_state_dict(state, strict=True)
    back = convert(deeper.double().state_dict(), from_=layout_from_file(described, {}), to="linen", config=CONFIG)
    port(params, deeper, image=IMAGE)
    assert torch.equal(deeper.norms[24].weight, state["norms.24.weight"])
    assert torch.equal(deeper.layers[21][0].weight, state["layers.21.0.weight"])
    assert not differing(dict(flatten(back)), {name: a.astype(np.float32).astype(float) for name, a in params.items()})


# Weights


def unseen_class() -> type[nn.Module]:
    """A Mixer for the digits under names that no table has."""

    class Unseen(nn.Module):
        def __init__(self, config: MixerConfig) -> None:
            super().__init__()
            self.inner = PortMixer(config, linear_stem="channels ph pw")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.inner(images)

    return Unseen


def test_the_digits_checkpoint_predicts_the_same_in_an_unseen_class() -> None:
    checkpoint = load(digits.CHECKPOINT)
    model = unseen_class()(checkpoint.config)
    before = [parameter.clone() for parameter in model.parameters()]
    port(digits.CHECKPOINT, model)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    images, labels = digits.held_out()
    from mixer_equiv.models.numpy import MlpMixer as Reference

    expected = Reference(checkpoint.config)(checkpoint.arrays, images)
    actual = run_torch(model, images.astype(np.float64))
    assert np.array_equal(actual.argmax(-1), expected.argmax(-1))
    assert np.linalg.norm(actual - expected) <= 1e-12 * np.linalg.norm(expected)
    assert np.mean(actual.argmax(-1) == labels) > 0.9


def test_porting_warns_of_what_the_model_computes() -> None:
    params = in_float32(CONFIG, 0)
    with pytest.warns(ConventionWarning, match="MlpMixer's code computes erf GELU") as caught:
        port(params, timm_mixer(CONFIG), image=IMAGE)
    assert len(caught) == 1


def test_an_assumed_image_that_the_model_refuses_is_said_to_be_assumed() -> None:
    with pytest.raises(
        MixerEquivError, match=r"the image was taken to be 3x6x12, from the number of tokens; give image"
    ):
        port(random_params(CONFIG, 0), timm_mixer(CONFIG))


def test_porting_into_nnx_and_linen() -> None:
    params = in_float32(CONFIG, 3)
    model = NnxMixer(CONFIG, rngs=nnx.Rngs(0))
    port(params, model)
    held = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    np.testing.assert_array_equal(held["stem"]["kernel"], params["stem/kernel"].astype(np.float32))
    assert not differing(port(params, FlaxMixer(CONFIG)).arrays, params)


def test_weights_of_another_size_are_refused_and_nothing_is_changed() -> None:
    model = timm_mixer(CONFIG.replace(hidden_dim=24))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="do not fit MlpMixer: hidden_dim is 20 in one and 24 in the other"):
        port(random_params(CONFIG, 0), model, image=IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
def test_a_head_may_stay_as_it_is() -> None:
    model = timm_mixer(CONFIG.replace(num_classes=5))
    head = model.head.weight.clone()
    port(random_params(CONFIG.replace(num_classes=0), 0), model, image=IMAGE, allow_missing=["head/*"])
    assert torch.equal(model.head.weight, head)


def test_a_found_layout_reads_and_writes_files(tmp_path: Any) -> None:
    layout = layout_of(PortMixer(CONFIG), IMAGE)
    params = random_params(CONFIG, 0)
    path = save(convert(params, to=layout, config=CONFIG), tmp_path / "theirs.safetensors")
    assert not differing(convert(load(path, layout=layout), to="linen").arrays, params)


# What is computed from parameters, or changes their order, has no layout.
WITHOUT_LAYOUT = ("weight norm", "two layers for a stem", "column-major tokens", "one vector", "vmap")


WITHOUT_LAYOUT += ("convolutions of the whole grid",)  # whose tokens stand on two axes, where a table has one
# Whose arrays are of unusual shapes, or several parameters in one.
UNUSUAL = ("Conv1d of kernel 1", "stacked", "stacked, unbind", "parameters in a list", "1x1 Conv2d on maps")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in UNUSUAL else pytest.mark.nightly)
        for name in FOREIGN
        if name not in WITHOUT_LAYOUT
    ],
)
def test_files_of_any_writing_are_read_and_written_by_its_layout(name: str, tmp_path: Any) -> None:
    theirs = FOREIGN[name](CONFIG.replace(num_blocks=3))
    layout = layout_of(theirs, IMAGE)
    # Parameters in a plain list are in no state_dict; files of them are not torch's to write.
    held = {**dict(theirs.named_parameters()), **find_unlisted_parameters(theirs)}
    torch.save({key: parameter.detach() for key, parameter in held.items()}, tmp_path / "theirs.pt")
    described = tmp_path / "layout.toml"
    described.write_text(layout.to_toml())
    read = load(tmp_path / "theirs.pt", layout=layout_from_file(described, {}), image_size=IMAGE[1:])
    ours = TorchMixer(read.config)
    ours.load_state_dict(convert(read, to="torch"), strict=True)
    report = verify(ours, theirs, weights="given", image=IMAGE)
    assert report.verdict == "equivalent", report
    written = load(save(convert(read, to=layout), tmp_path / "back.safetensors"), layout=layout)
    assert written.keys() == held.keys()
    for key, parameter in held.items():
        assert torch.equal(written[key].reshape(parameter.shape), parameter.detach()), key


class Scanned(flax_nn.Module):
    """The official function with the blocks' parameters stacked by `nn.scan`."""

    config: MixerConfig

    @flax_nn.compact
    def __call__(self, images: Any) -> Any:
        config = self.config
        x = flax_nn.Conv(config.hidden_dim, config.patch_hw, config.patch_hw, name="embed")(images)
        x = x.reshape(len(x), -1, config.hidden_dim)
        block = flax_nn.scan(
            ScannedBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.num_blocks
        )
        x, _ = block(config, name="blocks")(x, None)
        return flax_nn.Dense(config.num_classes)(flax_nn.LayerNorm()(x).mean(1))


class ScannedBlock(flax_nn.Module):
    config: MixerConfig

    @flax_nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        def mlp(y: Any, width: int, name: str) -> Any:
            hidden = flax_nn.gelu(flax_nn.Dense(width, name=f"{name}_in")(y))
            return flax_nn.Dense(y.shape[-1], name=f"{name}_out")(hidden)

        y = flax_nn.LayerNorm(name="before_tokens")(x).swapaxes(1, 2)
        x = x + mlp(y, self.config.tokens_mlp_dim, "tokens").swapaxes(1, 2)
        return x + mlp(flax_nn.LayerNorm(name="before_channels")(x), self.config.channels_mlp_dim, "channels"), None


def test_scanned_blocks_have_a_layout_of_stacks(tmp_path: Any) -> None:
    model = Scanned(CONFIG)
    layout = layout_of(model, IMAGE)
    bound = layout.bindings(CONFIG.num_blocks)
    assert bound["MixerBlock_10/token_mixing/Dense_1/kernel"].foreign == "blocks/tokens_out/kernel[10]"
    params = random_params(CONFIG, 0)
    theirs = convert(params, to=layout, config=CONFIG)
    made = model.init(jax.random.key(0), np.zeros((1, *CONFIG.image_hw, CONFIG.in_channels)))["params"]
    assert jax.tree.map(np.shape, made) == jax.tree.map(np.shape, theirs)
    for suffix in (".npz", ".msgpack"):
        path = save(Checkpoint.from_arrays(theirs, layout=layout, config=CONFIG), tmp_path / f"scanned{suffix}")
        assert not differing(convert(load(path, layout=layout), to="linen").arrays, params)
        assert sorted(load(path, layout=layout, lazy=True)) == sorted(name for name, _ in flatten(made))


def test_a_stack_with_a_gap_or_of_two_dtypes_is_refused(tmp_path: Any) -> None:
    layout = layout_of(Scanned(CONFIG), IMAGE)
    theirs = Checkpoint.from_arrays(convert(random_params(CONFIG, 0), to=layout, config=CONFIG), layout=layout)
    name = "blocks/tokens_out/kernel[3]"
    short = dict(theirs.arrays)
    single = {**short, name: short.pop(name).astype(np.float32)}
    for arrays, message in ((short, f"{re.escape(name)} is missing"), (single, "float32 and float64")):
        with pytest.raises(ConversionError, match=message):
            save(dataclasses.replace(theirs, arrays=arrays), tmp_path / "refused.npz")
    fewer = {key: array[:-1] if key == "blocks/tokens_out/bias" else array for key, array in theirs.whole.items()}
    with pytest.raises(ConversionError, match=re.escape("missing: blocks/tokens_out/bias[11], expected")):
        convert(fewer, from_=layout, to="torch", config=CONFIG)


# Verdicts


def test_a_tutorial_s_model_is_the_same_function_under_two_conventions() -> None:
    report = verify(TutorialMixer(CONFIG), image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {(cause.name, cause.found, cause.expected, cause.count) for cause in report.causes} == {
        ("activation", "gelu", "gelu_tanh", "24 of 24 MLPs"),
        ("layer_norm_eps", "1e-05", "1e-06", "25 of 25 LayerNorms"),
    }
    assert report.residual is not None
    assert report.residual > 1e-6
    assert report.residual_without_causes is not None
    assert report.residual_without_causes <= 1e-14
    assert report.first_divergence == "MixerBlock_0/token_mixing"
    assert report.mapping["MixerBlock_3/LayerNorm_1/scale"] == "blocks.3.norm_2.weight"


def test_two_foreign_models_are_held_against_each_other() -> None:
    report = verify(TutorialMixer(CONFIG), MmpretrainMixer(CONFIG), image=IMAGE)
    assert report.verdict == "equivalent"
    report = verify(timm_mixer(CONFIG), JeonsworldMixer(CONFIG), image=IMAGE)
    assert report.verdict == "equivalent"
    report = verify(TutorialMixer(CONFIG), timm_mixer(CONFIG), image=IMAGE)
    assert [(cause.name, cause.found, cause.expected) for cause in report.causes] == [
        ("layer_norm_eps", "1e-05", "1e-06")
    ]


@pytest.mark.parametrize("framework", ["torch", "linen", "nnx"])
def test_official_models_are_equivalent(framework: str) -> None:
    model = {
        "torch": lambda: PortMixer(CONFIG),
        "linen": lambda: OfficialMixer(CONFIG.patch_hw, 7, 12, CONFIG.hidden_dim, 11, 26),
        "nnx": lambda: NnxMixer(CONFIG, rngs=nnx.Rngs(0)),
    }[framework]()
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent"
    assert not report.causes


@pytest.mark.parametrize("name", [name for name in PORTS if "tied" in name or "shared" in name or "no " in name])
def test_constraints_are_named(name: str) -> None:
    report = verify(PortMixer(CONFIG, **PORTS[name]), image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {cause.kind for cause in report.causes} == {"constraint"}
    names = {cause.name for cause in report.causes}
    assert ("tied_blocks" in names) == ("tied" in name)
    assert ("shared_parameters" in names) == ("shared" in name)
    assert ("absent_parameters" in names) == ("no stem bias" in name)


def test_one_odd_place_is_named() -> None:
    model = PortMixer(CONFIG)
    model.blocks[7].mix_channels.act = nn.GELU()
    model.blocks[9].norm_tokens.eps = 3e-6
    report = verify(model, image=IMAGE)
    assert report.verdict == "equivalent_under"
    assert {(cause.name, cause.found, cause.count, cause.evidence) for cause in report.causes} == {
        ("activation", "gelu", "1 of 24 MLPs", "in PortMixer: MixerBlock_7/channel_mixing/activate"),
        ("layer_norm_eps", "3e-06", "1 of 25 LayerNorms", "in PortMixer: MixerBlock_9/LayerNorm_0"),
    }
    assert report.first_divergence == "MixerBlock_7/channel_mixing"


class Detached(PortMixer):
    """The official function, whose stem is not trained."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).detach()
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.final_norm(x).mean(dim=1))


def test_the_same_outputs_with_other_gradients_are_not_equivalent() -> None:
    report = verify(Detached(CONFIG), image=IMAGE)
    assert report.verdict == "different"
    assert report.residual is not None
    assert report.residual <= 1e-12
    assert report.gradients is not None
    assert report.gradients.worst in ("stem/kernel", "stem/bias")
    assert "the gradients differ by" in report.reasons[0]
    assert verify(Detached(CONFIG), image=IMAGE, gradients=False).verdict == "equivalent"


@pytest.mark.parametrize("name", ["tied blocks, shared norm", "linear stem without bias"])
def test_gradients_of_what_is_in_common_are_summed(name: str) -> None:
    report = verify(PortMixer(CONFIG, **PORTS[name]), image=IMAGE)
    assert report.gradients is not None
    assert report.gradients.residual <= report.gradients.threshold
    assert report.gradients.count == len(list(PortMixer(CONFIG, **PORTS[name]).parameters()))


def test_gradients_of_our_models_agree() -> None:
    report = verify("torch", "flax", gradients=True)
    assert report.gradients is not None
    assert 0 < report.gradients.residual <= 1e-12


@pytest.mark.parametrize("model", [nn.Linear(5, 5), nn.Flatten(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_what_is_no_mixer_is_said_to_be_none(model: nn.Module) -> None:
    report = verify(model, image=(3, 5, 5))
    assert report.verdict == "inexpressible"
    assert any("no patch embedding" in reason or "it is a Mixer up to" in reason for reason in report.reasons)
    with pytest.raises(InexpressibleError, match="has no layout: "):
        layout_of(model, (3, 5, 5))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["gmixer_12_224", "resmlp_12_224", "vit_tiny_patch16_224", "resnet10t"])
def test_timm_s_other_models_are_no_mixers(name: str) -> None:
    report = verify(import_timm().create_model(name))
    assert report.verdict == "inexpressible"
    assert report.reasons


@pytest.mark.nightly
def test_the_real_b_16_of_timm_differs_in_its_activation_alone() -> None:
    report = verify(import_timm().create_model("mixer_b16_224"))
    assert report.verdict == "equivalent_under"
    assert [(cause.name, cause.found, cause.count) for cause in report.causes] == [
        ("activation", "gelu", "24 of 24 MLPs")
    ]


# What is left as it was


def test_nothing_of_the_user_s_is_changed() -> None:
    model = PortMixer(CONFIG).train()
    model.blocks[3].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    grad = torch.is_grad_enabled()
    verify(model, image=IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled() is grad


def test_nothing_of_the_user_s_is_changed_when_the_model_raises() -> None:
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such luck")

    model, dtype = Raises().train(), torch.get_default_dtype()
    with pytest.raises(MixerEquivError, match="Raises raised ValueError when it was run: no such luck"):
        verify(model, image=IMAGE)
    assert model.training
    assert torch.get_default_dtype() is dtype
    assert torch.equal(model.weight, torch.ones(3))


# Models in other states

SMALL = CONFIG.replace(num_blocks=2)


class _NaN(PortMixer):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float("nan")


class _ThroughNumPy(PortMixer):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.from_numpy(images.detach().numpy() * 1))


class _WithMask(PortMixer):
    def forward(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * mask


STATES = {
    "compiled": lambda: torch.compile(PortMixer(SMALL)),
    "exported": lambda: torch.export.export(PortMixer(SMALL).eval(), (torch.zeros(2, *IMAGE),)).module(),
    "half": lambda: PortMixer(SMALL).half(),
    "bfloat16": lambda: PortMixer(SMALL).bfloat16(),
    "on the meta device": lambda: PortMixer(SMALL).to("meta"),
    "in train mode, with dropout": lambda: as_official(LucidrainsMixer(SMALL, dropout=0.5)).train(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("state", STATES)
def test_models_in_any_state_are_followed(state: str) -> None:
    report = verify(STATES[state](), image=IMAGE)
    assert report.verdict == "equivalent"
    assert report.gradients is not None
    assert report.gradients.residual <= report.gradients.threshold


class _Functional(PortMixer):
    """Dropout without a module, and an option that changes what comes out."""

    def forward(self, images: torch.Tensor, probabilities: bool = False) -> torch.Tensor:
        x = nn.functional.dropout(super().forward(images), 0.5, self.training)
        return x.softmax(-1) if probabilities else x


class _Coupled(PortMixer):
    """The official function of one image alone; of several, each is drawn to their mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
            x = x + 0.1 * (x.mean(0, keepdim=True) - x)
        return self.classifier(self.final_norm(x).mean(dim=1))


class _CoupledAtTheEnd(PortMixer):
    """The same, where the images go one by one until the end."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.cat([super(_CoupledAtTheEnd, self).forward(image[None]) for image in images])
        return x + 0.1 * (x.mean(0, keepdim=True) - x)


@pytest.mark.parametrize("model", [_Coupled, _CoupledAtTheEnd])
def test_a_model_that_mixes_the_images_of_a_batch_is_another_function(model: Any) -> None:
    report = verify(model(SMALL), image=IMAGE)
    assert report.verdict == "different"
    assert {cause.name for cause in report.causes} <= {"unknown"}
    if model is _CoupledAtTheEnd:
        assert any("depends on the other images of its batch" in reason for reason in report.reasons)
    assert "it is the same function" not in str(report)


class _NnxDropout(NnxMixer):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, images: Any) -> Any:
        return self.dropout(super().__call__(images))


@pytest.mark.parametrize("model", [_Functional, _NnxDropout])
def test_what_another_mode_or_option_would_do_is_said(model: Any) -> None:
    report = verify(model(SMALL), image=IMAGE, gradients=False)
    assert report.verdict == "equivalent"
    said = " ".join(report.warnings)
    assert "in train mode it computes something else, as with dropout" in said
    assert ("it also takes probabilities=False, left as given here" in said) == (model is _Functional)
    plain = PortMixer(SMALL) if model is _Functional else NnxMixer(SMALL, rngs=nnx.Rngs(0))
    assert "train mode" not in " ".join(verify(plain, image=IMAGE, gradients=False).warnings)


@pytest.mark.parametrize(
    ("model", "reason"), [(_NaN, "its output holds NaN or infinity"), (_ThroughNumPy, "to NumPy or to C++, cannot be")]
)
def test_of_models_that_cannot_be_followed_nothing_is_compared(model: Any, reason: str) -> None:
    report = verify(model(SMALL), image=IMAGE)
    assert report.verdict == "nothing_compared"
    assert any(reason in text for text in report.reasons)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.jit.trace(PortMixer(SMALL).eval(), torch.zeros(2, *IMAGE)), "was made by torch.jit"),
        (lambda: _WithMask(SMALL), "raised TypeError when it was run: .*missing 1 required positional argument"),
        (lambda: PortMixer, "PortMixer cannot be made without arguments .*; give the config or kwargs"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_models_that_cannot_be_run_are_refused_in_words(model: Any, message: str) -> None:
    with pytest.raises(MixerEquivError, match=message):
        verify(model(), image=IMAGE)


# Where models are

SOURCE = """
    import torch
    from torch import nn
    from tests.support.structures import PortMixer
    from mixer_equiv import MixerConfig

    class Mixer(PortMixer):
        def __init__(self, image_size, depth=12):
            super().__init__(MixerConfig(
                num_classes=7, num_blocks=depth, patch_size=4, image_size=image_size, hidden_dim=20,
                tokens_mlp_dim=11, channels_mlp_dim=26, in_channels=3,
            ))

    class Other:
        pass

    made = Mixer(12)
"""


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def place(tmp_path: Any) -> Any:
    path = tmp_path / "theirs.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


def test_a_model_in_a_file_is_verified(place: Any) -> None:
    result = run("verify", f"{place}:Mixer", "--kwargs", '{"image_size": 12}', "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "equivalent"
    assert run("verify", f"{place}:made", "--image", "3x12x12").exit_code == 0
    assert run("verify", "tests.support.structures:PortMixer", "--image", "3x12x12").exit_code == 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Mixer", [], "cannot be made with no kwargs (--kwargs): TypeError"),
        ("Mixer", ["--kwargs", '{"image_size": 13}'], "cannot be made with kwargs {'image_size': 13} (--kwargs): Conf"),
        ("Missing", [], "has no Missing; its classes are Mixer"),
        ("made", [], "the image that Mixer takes is not known; give image=(channels, height, width), --image"),
        ("made", ["--kwargs", '{"a": 1}', "--image", "3x12x12"], "is an object already, so that it takes no kwargs"),
        ("Other", ["--image", "3x12x12"], "Other; verify takes a checkpoint"),
    ],
)
def test_a_place_without_a_model_is_refused_in_words(place: Any, name: str, arguments: list[str], message: str) -> None:
    result = run("verify", f"{place}:{name}", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


# In tests


def test_a_file_replaces_no_module_of_its_name(tmp_path: Any) -> None:
    path = tmp_path / "json.py"
    path.write_text("import dataclasses\n\n@dataclasses.dataclass\nclass Mixer:\n    depth: int = 2\n")
    with pytest.raises(MixerEquivError, match="Mixer; verify takes a checkpoint"):
        verify(f"{path}:Mixer", image=IMAGE)
    assert importlib.import_module("json") is json
    assert json.loads("1") == 1


def test_assert_equivalent_returns_the_report_or_fails_with_it() -> None:
    assert assert_equivalent(PortMixer(CONFIG), image=IMAGE, gradients=False).equivalent
    model = timm_mixer(CONFIG)
    with pytest.raises(AssertionError, match=r"not equivalent\n") as caught:
        assert_equivalent(model, image=IMAGE, gradients=False)
    assert "activation" in str(caught.value)
    assert "24 of 24 MLPs" in str(caught.value)
    assert_equivalent(model, image=IMAGE, gradients=False, under=["activation"])
    with pytest.raises(AssertionError, match=r"not equivalent under activation\n"):
        assert_equivalent(TutorialMixer(CONFIG), image=IMAGE, gradients=False, under=["activation"])


finite = st.floats(-1e3, 1e3, allow_nan=False)


@given(pairs=st.lists(st.tuples(finite, finite), min_size=1, max_size=20), atol=st.floats(0, 1), rtol=st.floats(0, 1))
def test_compare_agrees_with_numpy_and_its_least_tolerances_pass(
    pairs: list[tuple[float, float]], atol: float, rtol: float
) -> None:
    x, y = (np.array(side) for side in zip(*pairs, strict=True))
    comparison = compare(x, y, rtol=rtol, atol=atol)
    assert bool(comparison) == bool(np.all(np.abs(x - y) <= atol + rtol * np.abs(y)))
    assert compare(x, y, rtol=rtol, atol=comparison.min_atol * (1 + 1e-12) + 1e-300)
    if np.isfinite(comparison.min_rtol):
        assert compare(x, y, rtol=comparison.min_rtol * (1 + 1e-12), atol=atol)


def test_compare_takes_arrays_by_name_and_says_where_the_worst_is() -> None:
    ours = {"a": torch.zeros(2, 3), "b": {"c": torch.ones(4)}}
    theirs = {"a": np.zeros((2, 3)), "b/c": np.array([1, 1, 1.5, 1])}
    comparison = compare(ours, theirs, rtol=1e-3)
    assert not comparison
    assert comparison.worst == "b/c[2]"
    assert "1 of 10 elements are not within rtol 0.001, atol 0: max |difference| 5.0e-01" in str(comparison)
    assert "rtol 3.3e-01 with this atol, or atol 5.0e-01 with this rtol" in str(comparison)
    assert not compare([np.nan], [np.nan], rtol=1, atol=1)
    assert compare([np.inf], [np.inf])
    with pytest.raises(ConversionError, match=r"b/c is only in one of the two"):
        compare({"a": ours["a"]}, theirs)
    with pytest.raises(ConversionError, match=r"array is \(2,\) in one|is \(2,\) in one and \(3,\) in the other"):
        compare(np.zeros(2), np.zeros(3))


class WithoutHead(PortMixer):
    """Features alone; the classifier is there and is not used."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x).mean(dim=1)


def test_a_model_without_a_head_takes_weights_whose_head_is_left_out() -> None:
    params = in_float32(CONFIG, 0)
    layout = layout_of(WithoutHead(CONFIG), image=IMAGE)
    features = {name: array for name, array in params.items() if not name.startswith("head/")}
    for weights in (params, features):
        model = WithoutHead(CONFIG)
        before = model.classifier.weight.clone()
        with pytest.warns(ConventionWarning, match=r"stay as they were: classifier.weight, classifier.bias$"):
            port(weights, model, image=IMAGE, allow_missing=["head/*"])
        assert torch.equal(model.classifier.weight, before)
        assert verify(model, image=IMAGE).verdict == "equivalent"
    state = convert(Checkpoint.from_arrays(params, config=CONFIG), to=layout, allow_missing=["head/*"])
    assert any("head/kernel, which" in note for note in state.notes)
    again = convert(state, to="linen")
    assert not any(name.startswith("head") for name in again.arrays)
    with pytest.raises(InexpressibleError, match=r"it has no head/kernel(.|\n)*leave the head out with drop_head"):
        port(params, WithoutHead(CONFIG), image=IMAGE)
