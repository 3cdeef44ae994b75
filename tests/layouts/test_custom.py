"""Layouts of one's own: what is refused, and ports that share, tie or lack parameters, there and back."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    ConfigError,
    InexpressibleError,
    LayoutError,
    convert,
    drop_head,
    enlarge,
    load,
    new_head,
    register_layout,
    save,
)
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.layouts import LINEN, Conventions, Row, get_layout
from mixer_equiv.layouts.timm import TIMM
from tests.support.structures import PORTS, PortMixer, run_official, run_torch

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG


@pytest.fixture(autouse=True)
def _the_registry_stays() -> Iterator[Any]:
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


# Ports

PLAIN = {
    "stem/kernel": "embed.0.weight  ph pw channels hidden -> hidden channels ph pw",
    "stem/bias": "embed.0.bias  hidden",
    "MixerBlock_{i}/LayerNorm_0/scale": "blocks.{i}.norm_tokens.weight  hidden",
    "MixerBlock_{i}/LayerNorm_0/bias": "blocks.{i}.norm_tokens.bias  hidden",
    "MixerBlock_{i}/token_mixing/Dense_0/kernel": "blocks.{i}.mix_tokens.up.weight  tokens tokens_mlp -> tokens_mlp tokens",
    "MixerBlock_{i}/token_mixing/Dense_0/bias": "blocks.{i}.mix_tokens.up.bias  tokens_mlp",
    "MixerBlock_{i}/token_mixing/Dense_1/kernel": "blocks.{i}.mix_tokens.down.weight  tokens_mlp tokens -> tokens tokens_mlp",
    "MixerBlock_{i}/token_mixing/Dense_1/bias": "blocks.{i}.mix_tokens.down.bias  tokens",
    "MixerBlock_{i}/LayerNorm_1/scale": "blocks.{i}.norm_channels.weight  hidden",
    "MixerBlock_{i}/LayerNorm_1/bias": "blocks.{i}.norm_channels.bias  hidden",
    "MixerBlock_{i}/channel_mixing/Dense_0/kernel": "blocks.{i}.mix_channels.up.weight  hidden channels_mlp -> channels_mlp hidden",
    "MixerBlock_{i}/channel_mixing/Dense_0/bias": "blocks.{i}.mix_channels.up.bias  channels_mlp",
    "MixerBlock_{i}/channel_mixing/Dense_1/kernel": "blocks.{i}.mix_channels.down.weight  channels_mlp hidden -> hidden channels_mlp",
    "MixerBlock_{i}/channel_mixing/Dense_1/bias": "blocks.{i}.mix_channels.down.bias  hidden",
    "pre_head_layer_norm/scale": "final_norm.weight  hidden",
    "pre_head_layer_norm/bias": "final_norm.bias  hidden",
    "head/kernel": "classifier.weight  hidden classes -> classes hidden",
    "head/bias": "classifier.bias  classes",
}


def port_layout(
    *,
    shared_norm: Any = False,
    norm_all: Any = False,
    tied_blocks: Any = False,
    stem_bias: Any = True,
    linear_stem: Any = None,
) -> Any:
    """The table of a `PortMixer` with the same departures, as a user writes it."""
    rows = dict(PLAIN)
    if linear_stem:
        rows["stem/kernel"] = f"embed.1.weight  ph pw channels hidden -> hidden ({linear_stem})"
        rows["stem/bias"] = "embed.1.bias  hidden"
    if not stem_bias:
        rows["stem/bias"] = "-  hidden"
    for canonical in rows:
        for norm in ("blocks.{i}.norm_tokens", "blocks.{i}.norm_channels"):
            name = "norm_all" if norm_all else "blocks.{i}.norm" if shared_norm else norm
            rows[canonical] = rows[canonical].replace(norm, name)
        rows[canonical] = rows[canonical].replace("blocks.{i}", "block") if tied_blocks else rows[canonical]
    fields = {"num_blocks": CONFIG.num_blocks} if tied_blocks else {}
    lines = [f"{canonical}  {row}" for canonical, row in rows.items()]
    return {"name": "port", "framework": "torch", "computes": {"activation": "gelu_tanh"}, "rows": lines, **fields}


def random_port(arguments: Any) -> Any:
    torch.manual_seed(3)
    model = PortMixer(CONFIG, **arguments).double()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    return model


@pytest.mark.parametrize("port", PORTS)
def test_a_port_converts_to_the_official_model_and_back_bit_for_bit(port: Any) -> None:
    layout = register_layout(port_layout(**PORTS[port]))
    model = random_port(PORTS[port])
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found = Checkpoint.from_arrays(state, image_size=CONFIG.image_size)
    assert found.layout is layout
    params = convert(found, to="linen")
    if "linear_stem" not in PORTS[port] or found.config.patch_hw == CONFIG.patch_hw:
        assert params.config == CONFIG
    images = random_images(CONFIG, 4)
    expected = run_official(CONFIG, dict(params.arrays), images)
    assert residual(run_torch(model, images), expected) <= 1e-12
    back = convert(params, to="port")
    assert not bit_differences(back.arrays, {name: tensor.numpy() for name, tensor in state.items()})
    other = PortMixer(CONFIG, **PORTS[port]).double()
    other.load_state_dict(dict(back), strict=True)
    assert np.array_equal(run_torch(other, images), run_torch(model, images))


@pytest.mark.parametrize("port", PORTS)
def test_a_port_is_widened_and_given_a_head_as_the_official_model_is(port: Any) -> None:
    """And what comes out loads strictly into the port's code."""
    register_layout(port_layout(**PORTS[port]))
    found = Checkpoint.from_arrays(dict(random_port(PORTS[port]).state_dict()), config=CONFIG)
    for change in (lambda c: enlarge(c, (16, 18)), lambda c: new_head(c, 5), lambda c: new_head(drop_head(c), 5)):
        changed = change(found)
        assert not bit_differences(convert(changed, to="linen").arrays, change(convert(found, to="linen")).arrays)
        PortMixer(changed.config, **PORTS[port]).double().load_state_dict(dict(changed), strict=True)


def without_affine(model: Any) -> Any:
    """The same model with LayerNorms that have neither scale nor bias."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            parent, _, own = name.rpartition(".")
            plain = nn.LayerNorm(CONFIG.hidden_dim, eps=1e-6, elementwise_affine=False)
            setattr(model.get_submodule(parent), own, plain)
    return model


def test_a_port_without_any_affine_norm_converts_to_ones_and_zeros_and_back() -> None:
    layout = port_layout()
    norms = [line.split()[0] for line in layout["rows"] if "norm" in line.split()[1]]
    rows = [line for line in layout["rows"] if line.split()[0] not in norms]
    register_layout({**layout, "rows": [*rows, *(f"{norm}  -  hidden" for norm in norms)]})
    model = without_affine(random_port({}))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    assert len(norms) == 6
    assert not [name for name in state if "norm" in name]
    params = convert(Checkpoint.from_arrays(state, config=CONFIG), to="linen").arrays
    images = random_images(CONFIG, 4)
    assert residual(run_torch(model, images), run_official(CONFIG, dict(params), images)) <= 1e-12
    back = convert(params, to="port", config=CONFIG)
    assert not bit_differences(back.arrays, {name: tensor.numpy() for name, tensor in state.items()})
    without_affine(random_port({})).load_state_dict(dict(back), strict=True)
    for name, value in ("MixerBlock_3/LayerNorm_1/scale", np.nextafter(1, 2)), ("pre_head_layer_norm/bias", -0.0):
        array = params[name].copy()
        array[7] = value
        with pytest.raises(InexpressibleError, match=f"it has no {name}, which is not all"):
            convert({**params, name: array}, to="port", config=CONFIG)


CONSTRAINTS = {
    "shared norm": "blocks.3.norm.weight is both MixerBlock_3/LayerNorm_0/scale and MixerBlock_3/LayerNorm_1/scale",
    "norm all": "norm_all.bias is both MixerBlock_0/LayerNorm_0/bias and MixerBlock_5/LayerNorm_1/bias",
    "tied blocks": "block.mix_tokens.up.weight is both MixerBlock_0/token_mixing/Dense_0/kernel and MixerBlock_11/",
    "no stem bias": "it has no stem/bias, which is not all zeros",
}


@pytest.mark.parametrize("port", CONSTRAINTS)
def test_weights_that_do_not_coincide_are_refused_by_name(port: Any) -> None:
    layout = register_layout(port_layout(**PORTS[port]))
    assert layout.constraints
    with pytest.raises(InexpressibleError, match="no weights of the layout port are the same function") as caught:
        convert(random_params(CONFIG, 0), to="port", config=CONFIG)
    assert any(reason.startswith(CONSTRAINTS[port]) for reason in caught.value.reasons)


def coinciding(port: Any) -> Any:
    """Official weights that the port's layout can hold."""
    state = {name: tensor.detach() for name, tensor in random_port(PORTS[port]).state_dict().items()}
    return dict(convert(Checkpoint.from_arrays(state, config=CONFIG), to="linen").arrays)


@pytest.mark.parametrize(
    ("port", "name", "change"),
    [
        *itertools.product(["shared norm"], ["MixerBlock_7/LayerNorm_1/bias"], ["one ulp", "sign of zero", "dtype"]),
        *itertools.product(["tied blocks"], ["MixerBlock_11/channel_mixing/Dense_1/kernel"], ["one ulp", "dtype"]),
        *itertools.product(["no stem bias"], ["stem/bias"], ["one ulp", "sign of zero"]),
        *itertools.product(["norm all"], ["MixerBlock_9/LayerNorm_0/scale"], ["one ulp", "dtype"]),
    ],
)
def test_one_bit_that_differs_is_enough_to_refuse(port: Any, name: str, change: Any) -> None:
    register_layout(port_layout(**PORTS[port]))
    params = coinciding(port)
    convert(params, to="port", config=CONFIG)
    if change == "sign of zero":
        params = {n: np.zeros_like(a) if n.endswith(("bias", "Dense_1/kernel")) else a for n, a in params.items()}
    array = params[name].astype(np.float32 if change == "dtype" else np.float64)
    if change != "dtype":
        array.flat[0] = np.nextafter(array.flat[0], 9) if change == "one ulp" else -0.0
    convert(params, to="port", config=CONFIG)
    with pytest.raises(InexpressibleError):
        convert({**params, name: array}, to="port", config=CONFIG)


def test_a_norm_without_scale_and_bias_is_ones_and_zeros() -> None:
    rows = "pre_head_layer_norm/scale  -  hidden\npre_head_layer_norm/bias  -  hidden"
    register_layout({"name": "plain", "base": "timm", "rows": rows})
    arrays = {n: a for n, a in relabel(random_params(CONFIG, 0), LINEN, TIMM, CONFIG).items() if n[:5] != "norm."}
    params = convert(Checkpoint.from_arrays(arrays, config=CONFIG), to="linen").arrays
    assert np.array_equal(params["pre_head_layer_norm/scale"], np.ones(20))
    assert np.array_equal(params["pre_head_layer_norm/bias"], np.zeros(20))
    assert not bit_differences(convert(params, to="plain", config=CONFIG).arrays, arrays)
    with pytest.raises(InexpressibleError, match="no pre_head_layer_norm/scale, which is not all ones"):
        convert(random_params(CONFIG, 0), to="plain", config=CONFIG)


def test_what_is_filled_in_has_the_dtype_of_its_module() -> None:
    register_layout(port_layout(stem_bias=False))
    state = {name: tensor.bfloat16() for name, tensor in random_port({"stem_bias": False}).state_dict().items()}
    assert str(convert(Checkpoint.from_arrays(state), to="linen").arrays["stem/bias"].dtype) == "bfloat16"


def test_tied_blocks_of_another_depth_are_refused() -> None:
    register_layout(port_layout(tied_blocks=True))
    params = {n: a for n, a in coinciding("tied blocks").items() if "MixerBlock_11" not in n}
    with pytest.raises(InexpressibleError, match="it is of 12 blocks, these are weights of 11"):
        convert(params, to="port", config=CONFIG.replace(num_blocks=11))


def test_files_of_a_port_come_back(tmp_path: Path) -> None:
    register_layout(port_layout(tied_blocks=True, shared_norm=True))
    state = random_port({"tied_blocks": True, "shared_norm": True}).state_dict()
    for suffix in (".safetensors", ".pt", ".npz"):
        save(state, tmp_path / f"port{suffix}")
        found = load(tmp_path / f"port{suffix}")
        assert found.layout.name == "port"
        assert found.config.num_blocks == 12
        assert not bit_differences(found.arrays, {name: tensor.numpy() for name, tensor in state.items()})


# Registering

OURS = {"name": "ours", "base": "timm", "rows": "stem/kernel  patchify.weight\nhead/bias  -"}
OURS_TOML = (
    'name = "ours"\nbase = "timm"\nrows = """\n  # a comment\n  stem/kernel  patchify.weight\n  head/bias  -\n"""\n'
)


def test_a_layout_is_the_same_from_python_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(OURS_TOML)
    (tmp_path / "a.json").write_text(json.dumps(OURS))
    rows = tuple(
        Row(
            row.canonical,
            {"stem/kernel": "patchify.weight", "head/bias": "-"}.get(row.canonical, row.foreign),
            row.pattern,
        )
        for row in TIMM.rows
    )
    by_hand = dataclasses.replace(TIMM, name="ours", rows=rows[::-1], provenance={})
    for source in (OURS, tmp_path / "a.toml", str(tmp_path / "a.json"), by_hand):
        layout = register_layout(source, replace=True)
        assert layout.rows == rows
        assert (layout.computes, layout.framework) == (TIMM.computes, "torch")
        assert get_layout("ours") is LAYOUTS["ours"] is layout


def test_the_layout_registered_last_is_taken_where_names_fit_several() -> None:
    computes = {"activation": "relu", "layer_norm_eps": 1e-5}
    register_layout({"name": "ours", "base": "timm", "computes": computes, "trained_with": computes})
    found = Checkpoint.from_arrays(relabel(random_params(CONFIG, 0), LINEN, TIMM, CONFIG))
    assert (found.layout.name, found.trained_with) == ("ours", Conventions("relu", 1e-5))


def test_that_a_layout_replaces_another_is_said_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        register_layout(OURS, True)
    assert "ours" not in LAYOUTS
    assert register_layout(layout=OURS).name == "ours"


def test_layouts_are_known_newest_first_and_the_others_keep_their_order() -> None:
    built_in = list(LAYOUTS)
    register_layout(OURS)
    register_layout({**OURS, "name": "theirs"})
    assert list(LAYOUTS) == ["theirs", "ours", *built_in]
    register_layout(OURS, replace=True)
    assert list(LAYOUTS) == ["ours", "theirs", *built_in]


BLOCK_NAMES = ["of{L}.{i}.", "{i}.of{L}.", "blocks.{i}.layer{i}_"]


@pytest.mark.parametrize("name", BLOCK_NAMES)
def test_names_with_any_allowed_placeholders_are_found_again(name: str) -> None:
    rows = [f"{row.canonical} {row.foreign.replace('blocks.{i}.', name)} {row.pattern}" for row in TIMM.rows]
    register_layout({"name": "ours", "base": "timm", "rows": rows})
    written = convert(random_params(CONFIG, 0), to="ours", config=CONFIG).arrays
    found = Checkpoint.from_arrays(written, config=CONFIG)
    assert found.layout.name == "ours"
    assert not bit_differences(convert(found, to="linen").arrays, random_params(CONFIG, 0))


WRONG = {
    "unknown field": ({"nam": "x"}, "a layout has no field 'nam'; its fields are base, name"),
    "unknown base": ({"name": "x", "base": "keras"}, "base is 'keras'; it must be one of linen, torch, timm"),
    "a base and no name": ({"base": "timm"}, "the layout lacks a name: give one"),
    "no base and no rows": ({"name": "x"}, "the layout lacks framework, computes, rows"),
    "framework": ({**OURS, "framework": "keras"}, "framework is 'keras'; it must be 'flax' or 'torch'"),
    "name": ({**OURS, "name": "a b"}, "name is 'a b'; it must be of letters"),
    "depth": ({**OURS, "num_blocks": True}, "num_blocks is True; it must be a whole number"),
    "depth of text": ({**OURS, "num_blocks": "12"}, "num_blocks is '12'; it must be a whole number from 1 to 10000"),
    "depth of no Mixer": ({**OURS, "num_blocks": 10**12}, "num_blocks is 1000000000000; it must be a whole number"),
    "conventions": ({**OURS, "computes": {"activation": "mish"}}, "computes is .*activation is 'mish'"),
    "rows": ({**OURS, "rows": 3}, "rows is 3; it must be lines of text"),
    "rows of two columns": ({**OURS, "rows": [["a", "b"]]}, "it must be lines of text, or a list of lines"),
    "one column": ({**OURS, "rows": "stem/kernel"}, "row 'stem/kernel' has one column"),
    "unknown parameter": (
        {**OURS, "rows": "stem/kernal a hidden"},
        "row stem/kernal: no canonical parameter is called so; the nearest is stem/kernel",
    ),
    "unknown parameter near the end of the table": (
        {**OURS, "rows": "head/bais a classes"},
        "row head/bais: no canonical parameter is called so; the nearest is head/bias",
    ),
    "twice": ({**OURS, "rows": "head/bias a\nhead/bias b"}, "row head/bias: it is there twice"),
    "axes before": (
        {**OURS, "rows": "head/kernel a classes hidden"},
        "row head/kernel: its axes before the arrow are 'classes hidden'; they must be 'hidden classes'",
    ),
    "other axes before": (
        {**OURS, "rows": "head/kernel a tokens hidden"},
        "row head/kernel: its axes before the arrow are 'tokens hidden'; they must be 'hidden classes'",
    ),
    "axes after, of a lesser name": (
        {**OURS, "rows": "head/kernel a hidden classes -> channels classes"},
        r"row head/kernel: its axes 'channels classes' are not those of 'hidden classes' in some order",
    ),
    "axes after": (
        {**OURS, "rows": "head/kernel a hidden classes -> classes tokens"},
        r"row head/kernel: its axes 'classes tokens' are not those of 'hidden classes' in some order",
    ),
    "axis lost": (
        {**OURS, "rows": "stem/kernel a ph pw channels hidden -> hidden (ph pw)"},
        "row stem/kernel: its axes 'hidden .ph pw.' are not those",
    ),
    "placeholder": ({**OURS, "rows": "head/bias {i}.a"}, r"row head/bias: \{i\} in its name; it may have \{L\}"),
    "an array below another": (
        {"name": "x", "base": "linen", "rows": "stem/kernel stem"},
        "row stem/bias: stem/bias lies below stem, which is an array and can hold none",
    ),
    "open placeholder": ({**OURS, "rows": "head/bias a.{L"}, r"row head/bias: \{L in its name"),
    "absent kernel": ({**OURS, "rows": "head/kernel -"}, "row head/kernel: a kernel cannot be absent"),
    "list": (["x"], "a layout is described by a table of fields; found list"),
    "base of another type": ({**OURS, "base": ["timm"]}, r"base is \['timm'\]; it must be one of"),
    "aliases": ({**OURS, "aliases": "abc"}, "aliases is 'abc'; it must be a list of names"),
    "advice": ({**OURS, "advice": {"gelu": "x"}}, "advice is .*; it must have sentences for activation and"),
    "conventions of another type": ({**OURS, "computes": "gelu"}, "computes is 'gelu'; it must be a table, such as"),
    "two arrows": (
        {**OURS, "rows": "head/bias a classes -> classes -> classes"},
        "row head/bias: its axes 'classes -> classes' are not those",
    ),
    "one name in two blocks": (
        {
            **OURS,
            "rows": "MixerBlock_{i}/LayerNorm_0/bias a.{i} hidden\nMixerBlock_{i}/LayerNorm_1/bias a.{i+1} hidden",
        },
        r"row MixerBlock_\{i\}/LayerNorm_1/bias: a.\{i\+1\} is in some block what MixerBlock_\{i\}/LayerNorm_0/bias is",
    ),
    "one name in two blocks, the other way round": (
        {
            **OURS,
            "rows": "MixerBlock_{i}/LayerNorm_0/bias a.{i+1} hidden\nMixerBlock_{i}/LayerNorm_1/bias a.{i} hidden",
        },
        r"row MixerBlock_\{i\}/LayerNorm_1/bias: a.\{i\} is in some block what MixerBlock_\{i\}/LayerNorm_0/bias is",
    ),
    "an array of the depth below another": (
        {"name": "x", "base": "linen", "rows": "stem/kernel of{L}\nstem/bias of{L}/bias\nhead/bias of12x"},
        r"row stem/bias: of\{L\}/bias lies below of12, which is an array",
    ),
    "an array in a block below one that all have": (
        {
            "name": "x",
            "base": "linen",
            "rows": "MixerBlock_{i}/LayerNorm_0/bias a\nMixerBlock_{i}/LayerNorm_1/bias a/{i+5}",
        },
        r"row MixerBlock_\{i\}/LayerNorm_1/bias: a/\{i\+5\} lies below a, which is an array",
    ),
    "an array in a block below another of the block": (
        {
            "name": "x",
            "base": "linen",
            "rows": "MixerBlock_{i}/LayerNorm_0/bias a{i}\nMixerBlock_{i}/LayerNorm_1/bias a{i}/b",
        },
        r"row MixerBlock_\{i\}/LayerNorm_1/bias: a\{i\}/b lies below a0, which is an array",
    ),
    "an array of the last block what another is in the first": (
        {
            "name": "x",
            "base": "linen",
            "rows": "MixerBlock_{i}/LayerNorm_0/bias a.{i}\nMixerBlock_{i}/LayerNorm_1/bias a.{i+11}",
        },
        r"a.\{i\} is in some block what MixerBlock_\{i\}/LayerNorm_1/bias is in another|"
        r"a.\{i\+11\} is in some block what MixerBlock_\{i\}/LayerNorm_0/bias is in another",
    ),
    "a number that is the depth": (
        {"name": "x", "base": "linen", "rows": "stem/bias of{L}\nhead/bias of12"},
        r"row head/bias: of12 is in some block what stem/bias is in another",
    ),
    "shared with axes of a greater name": (
        {**OURS, "rows": "head/bias same classes\npre_head_layer_norm/bias same hidden"},
        "row pre_head_layer_norm/bias: same is also head/bias, with other axes .hidden and classes.",
    ),
    "a block more than any Mixer": ({**OURS, "num_blocks": 10_001}, "num_blocks is 10001; it must be a whole number"),
    "no depth": ({**OURS, "num_blocks": 0}, "num_blocks is 0; it must be a whole number from 1 to 10000"),
    "a depth that names show": ({**OURS, "num_blocks": 3}, r"num_blocks is 3, but names with \{i\} show the depth"),
    "shared with other axes": (
        {**OURS, "rows": "head/bias norm.bias"},
        "row head/bias: norm.bias is also pre_head_layer_norm/bias, with other axes .classes and hidden.",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_table_is_refused_and_nothing_is_registered(fault: Any) -> None:
    fields, fragment = WRONG[fault]
    before = dict(LAYOUTS)
    with pytest.raises(LayoutError, match=fragment):
        register_layout(fields)
    assert before == LAYOUTS


def test_all_that_is_wrong_is_in_one_error() -> None:
    rows = "stem/kernal a hidden\nhead/kernel a classes hidden\nhead/bias {i}"
    with pytest.raises(LayoutError) as caught:
        register_layout({**OURS, "name": "a b", "num_blocks": 0, "rows": rows})
    for place in ("name", "num_blocks", "row stem/kernal", "row head/kernel", "row head/bias"):
        assert f"\n  {place}" in str(caught.value)


def test_every_row_of_one_column_is_named() -> None:
    with pytest.raises(LayoutError) as caught:
        register_layout({**OURS, "rows": "stem/kernel\nhead/kernel\nstem/bias stem.bias tokens"})
    for row in ("stem/kernel", "head/kernel", "row stem/bias"):
        assert row in str(caught.value)


def test_a_norm_of_blocks_that_is_also_the_final_one_is_not_said_to_have_other_axes() -> None:
    parts = {"scale": "weight", "bias": "bias"}
    norms = [f"MixerBlock_{{i}}/LayerNorm_{n}/{ours} norm.{theirs}" for n in (0, 1) for ours, theirs in parts.items()]
    with pytest.raises(LayoutError, match=r"norm\.weight is also pre_head_layer_norm/scale") as caught:
        register_layout({**OURS, "rows": norms})
    assert "hidden and hidden" not in str(caught.value)


@pytest.mark.parametrize("advice", [{"activation": 3}, {"activation": "use {nonsense}"}, {"layer_norm_eps": "{"}])
def test_advice_that_cannot_be_given_is_refused_when_it_is_registered(advice: Any) -> None:
    with pytest.raises(LayoutError, match="advice"):
        register_layout({**OURS, "advice": advice})


def test_a_table_without_a_row_names_it_and_what_to_write() -> None:
    with pytest.raises(
        LayoutError, match="row stem/bias: it is missing; a bias or scale that the code does not have is"
    ):
        register_layout(dataclasses.replace(TIMM, name="ours", rows=TIMM.rows[:1] + TIMM.rows[2:]))


def test_a_head_is_left_out_whole_or_not_at_all() -> None:
    table = port_layout()
    rows = [row for row in table["rows"] if not row.startswith("head/")]
    assert not any(name.startswith("head/") for name in register_layout({**table, "rows": rows}).parameters(2))
    with pytest.raises(LayoutError, match="row head/bias: it is missing"):
        register_layout({**table, "rows": [row for row in table["rows"] if not row.startswith("head/bias")]})


def test_blocks_all_tied_need_a_depth() -> None:
    layout = port_layout(tied_blocks=True)
    del layout["num_blocks"]
    with pytest.raises(LayoutError, match="all blocks are tied and names do not show how many: give num_blocks"):
        register_layout(layout)


@pytest.mark.parametrize("depth", [1, 10_000])
def test_blocks_all_tied_may_be_one_or_the_most_there_are(depth: int) -> None:
    assert register_layout({**port_layout(tied_blocks=True), "num_blocks": depth}).num_blocks == depth


def test_rows_of_all_single_blocks_stand_for_the_row_of_the_blocks() -> None:
    layout = port_layout(tied_blocks=True)
    own = "MixerBlock_{i}/LayerNorm_0/bias"
    rows = [line for line in layout["rows"] if not line.startswith(own)]
    single = [f"{own.replace('{i}', str(i))}  bias_of_{'abc'[i]}  hidden" for i in range(3)]
    for given in (single, single[::-1]):
        registered = register_layout({**layout, "num_blocks": 3, "rows": [*given, *rows]}, replace=True)
        assert [row.foreign for row in registered.rows if "bias_of" in row.foreign] == [
            "bias_of_a", "bias_of_b", "bias_of_c"
        ]  # fmt: skip
    with pytest.raises(LayoutError, match=r"row MixerBlock_\{i\}/LayerNorm_0/bias: it is missing"):
        register_layout({**layout, "num_blocks": 3, "rows": [*single[:2], *rows]}, replace=True)
    more = f"{own.replace('{i}', '3')}  bias_of_d  hidden"
    register_layout({**layout, "num_blocks": 3, "rows": [*single, more, *rows]}, replace=True)


@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("order", [1, -1])
def test_the_row_of_one_block_outweighs_that_of_all(block: Any, order: Any) -> None:
    rows = ["MixerBlock_{i}/LayerNorm_0/bias  b.{i}  hidden", f"MixerBlock_{block}/LayerNorm_0/bias  odd  hidden"]
    bound = register_layout({**OURS, "rows": rows[::order]}).bindings(5)
    names = [bound[f"MixerBlock_{i}/LayerNorm_0/bias"].foreign for i in range(5)]
    assert names == [*(f"b.{i}" for i in range(block)), "odd", *(f"b.{i}" for i in range(block + 1, 5))]


def test_a_layout_that_is_not_registered_is_checked_where_it_is_used() -> None:
    with pytest.raises(LayoutError, match="row stem/bias: it is missing"):
        convert(random_params(CONFIG, 0), to=dataclasses.replace(TIMM, name="x", rows=TIMM.rows[:1]), config=CONFIG)


def test_a_name_in_use_is_refused_unless_it_is_to_be_replaced() -> None:
    register_layout(OURS)
    for name in ("ours", "timm", "flax"):
        with pytest.raises(LayoutError, match=f"a layout is already called {name}"):
            register_layout({**OURS, "name": name})
    with pytest.raises(LayoutError, match="a layout is already called tutorial"):
        register_layout({**OURS, "name": "other", "aliases": ["tutorial"]})
    assert len([name for name in LAYOUTS if name == "ours"]) == 1
    assert register_layout({**OURS, "summary": "anew"}, replace=True).summary == "anew"


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("a.yaml", "", "a layout is described in a .toml or a .json file"),
        ("a.toml", "name = ", "a.toml is not TOML"),
        ("a.json", "{", "a.json is not JSON"),
        ("a.json", "[1]", "a.json: a layout is described by a table of fields; found list"),
        ("a.toml", OURS_TOML.replace("stem/kernel", "stem/kernal"), "a.toml: the layout 'ours' is wrong"),
    ],
)
def test_a_file_that_describes_no_layout_is_refused_by_name(
    tmp_path: Path, name: str, text: Any, fragment: Any
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(LayoutError, match=fragment):
        register_layout(tmp_path / name)
    with pytest.raises(LayoutError, match="cannot be read"):
        register_layout(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    "axes", ["(hidden ph) pw channels", "(ph pw) channels hidden", "hidden channels (pw ph)", "(pw channels) hidden ph"]
)
def test_sizes_of_joined_axes_follow_from_those_that_are_known(axes: Any) -> None:
    register_layout({"name": "joined", "base": "timm", "rows": f"stem/kernel a ph pw channels hidden -> {axes}"})
    params = random_params(CONFIG, 0)
    there = convert(Checkpoint.from_arrays(params, config=CONFIG), to="joined").arrays
    for image_size in (None, CONFIG.image_size):
        found = Checkpoint.from_arrays(there, image_size=image_size)
        assert (found.config.patch_hw, found.config.in_channels) == ((2, 3), 3)
        assert not bit_differences(convert(found, to="linen").arrays, params)


def test_tied_blocks_take_any_config_of_another_depth() -> None:
    register_layout(port_layout(tied_blocks=True))
    state = random_port({"tied_blocks": True}).state_dict()
    config = CONFIG.replace(num_blocks=3)
    assert convert(Checkpoint.from_arrays(state, config=config), to="linen").config.num_blocks == 3
    with pytest.raises(ConfigError):
        Checkpoint.from_arrays(state, image_size=7)
