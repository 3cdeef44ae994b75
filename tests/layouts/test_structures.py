"""What a layout names is the structure that real code has, and computes the official logits there."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from mixer_equiv import LAYOUTS, Checkpoint, ConventionWarning, MixerConfig, convert, load, save
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.equivalence.sides.locate import import_timm
from mixer_equiv.equivalence.sides.runners import run_reference
from mixer_equiv.layouts import Conventions
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from tests.support.kernels import STEM_COLUMNS, TOKENS_BY_CONV1D
from tests.support.structures import (
    STRUCTURES,
    as_official,
    pre_linen_arrays,
    run_official,
    run_scenic,
    run_torch,
    timm_mixer,
)

TANH = {"act_layer": partial(nn.GELU, approximate="tanh")}
SQUARE = MixerConfig(
    num_classes=16,
    num_blocks=12,
    patch_size=2,
    image_size=8,
    in_channels=4,
    hidden_dim=16,
    tokens_mlp_dim=16,
    channels_mlp_dim=16,
)


def run_nnx(config: MixerConfig, arrays: Any, images: Any) -> Any:
    """Float64 logits of our nnx model, given exactly these arrays."""
    with jax_full_precision():
        model = NnxMixer(config, rngs=nnx.Rngs(0))
        own = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        assert {n: a.shape for n, a in flatten(own)} == {n: a.shape for n, a in arrays.items()}
        nnx.update(model, unflatten(arrays))
        return np.asarray(model(images))


def run_from_linen(config: MixerConfig, arrays: Any, images: Any) -> Any:
    """For a layout that is only read: what the official model gives for its arrays, converted."""
    return run_official(config, dict(flatten(convert(arrays, to="linen", config=config))), images)


# How each Flax layout's arrays are run by the structure behind it.
FLAX_RUNS = {"linen": run_official, "scenic": run_scenic, "nnx": run_nnx, "pre-linen": run_from_linen}


def flax_arrays(layout: str, params: Any, config: MixerConfig) -> dict[str, Any]:
    """Canonical weights under the names of a Flax layout; those that are only read are written by the tests."""
    if LAYOUTS[layout].read_only:
        return pre_linen_arrays(params, config, np.random.default_rng(20))
    return dict(flatten(convert(params, to=layout, config=config)))


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("config", [DEFAULT_CONFIG, SQUARE], ids=["all sizes different", "all sizes equal"])
@pytest.mark.parametrize("layout", STRUCTURES)
def test_a_converted_checkpoint_loads_strictly_and_computes_the_official_logits(
    layout: Any, config: MixerConfig
) -> None:
    params, images = random_params(config, 11), random_images(config, 12)
    state = convert(params, to=layout, config=config)
    expected = run_official(config, params, images)
    model = as_official(STRUCTURES[layout](config)).double()
    model.load_state_dict(state, strict=True)
    assert residual(run_torch(model, images), expected) <= 1e-12
    model = STRUCTURES[layout](config).double()
    model.load_state_dict(state, strict=True)
    same = LAYOUTS[layout].computes.activation == "gelu_tanh"
    assert (residual(run_torch(model, images), expected) <= 1e-12) == same


@pytest.mark.parametrize("config", [DEFAULT_CONFIG, SQUARE], ids=["all sizes different", "all sizes equal"])
@pytest.mark.parametrize("layout", FLAX_RUNS)
def test_a_converted_checkpoint_computes_the_official_logits_in_flax(layout: Any, config: MixerConfig) -> None:
    params, images = random_params(config, 18), random_images(config, 19)
    logits = FLAX_RUNS[layout](config, flax_arrays(layout, params, config), images)
    assert residual(logits, run_official(config, params, images)) <= 1e-12


def test_every_layout_has_a_structure_here() -> None:
    assert {*STRUCTURES, *FLAX_RUNS} == set(LAYOUTS), (
        "a torch layout needs a line in STRUCTURES of tests/support/structures/by_layout.py, a Flax one in FLAX_RUNS"
    )
    assert set(STRUCTURES) == {name for name, layout in LAYOUTS.items() if layout.framework == "torch"}


def numbers_of_axes(canonical: str) -> dict[str, int]:
    """The number of axes that each layout gives a parameter; the structures, which load strictly, have the same."""
    return {name: len(layout.bindings(1)[canonical].shape(SQUARE.axis_sizes)) for name, layout in LAYOUTS.items()}


def test_the_layouts_with_a_stem_over_columns_are_named() -> None:
    over_columns = {name for name, axes in numbers_of_axes("stem/kernel").items() if axes == 2}
    assert set(STEM_COLUMNS) == over_columns, (
        "write the order of axes in a column into STEM_COLUMNS of tests/support/kernels.py"
    )


def test_the_layouts_with_token_mixing_by_conv1d_are_named() -> None:
    by_conv1d = {name for name, axes in numbers_of_axes("MixerBlock_0/token_mixing/Dense_0/kernel").items() if axes > 2}
    assert by_conv1d == TOKENS_BY_CONV1D, "write these layouts into TOKENS_BY_CONV1D of tests/support/kernels.py"


def computes(layout: str, conventions: Conventions) -> bool:
    """Whether the structure behind a layout computes the Mixer of these conventions."""
    config = DEFAULT_CONFIG.replace(activation=conventions.activation, layer_norm_eps=conventions.layer_norm_eps)
    params, images = random_params(config, 21), random_images(config, 22)
    if layout in STRUCTURES:
        model = STRUCTURES[layout](DEFAULT_CONFIG).double()
        model.load_state_dict(convert(params, to=layout, config=config), strict=True)
        logits = run_torch(model, images)
    else:
        logits = FLAX_RUNS[layout](config, flax_arrays(layout, params, config), images)
    return residual(logits, run_reference(config, params, images)["logits"]) <= 1e-12


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_structure_has_the_activation_and_the_eps_that_its_layout_says(layout: str) -> None:
    assert computes(layout, LAYOUTS[layout].computes)


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("wrong", [{"layer_norm_eps": 2e-6}, {"activation": "quick_gelu"}], ids=str)
@pytest.mark.parametrize("layout", STRUCTURES)
def test_a_layout_that_says_another_activation_or_eps_is_seen(layout: str, wrong: dict[str, Any]) -> None:
    assert not computes(layout, dataclasses.replace(LAYOUTS[layout].computes, **wrong))


@pytest.mark.parametrize("layout", STRUCTURES)
def test_a_model_s_own_weights_convert_to_the_official_model(layout: Any) -> None:
    config = DEFAULT_CONFIG
    torch.manual_seed(0)
    model = as_official(STRUCTURES[layout](config)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = random_images(config, 13)
    params = Checkpoint.from_arrays(convert(model.state_dict(), to="linen", config=config)).arrays
    assert residual(run_torch(model, images), run_official(config, params, images)) <= 1e-12


@pytest.mark.parametrize("wrong", ["norm", "mlp", "order"])
def test_a_wrong_but_invertible_table_is_seen_by_the_structures(wrong: Any) -> None:
    """The planted fault: each of these tables round-trips, and loads strictly where shapes allow."""
    timm = LAYOUTS["timm"]
    swaps = {"norm": ("norm1", "norm2"), "mlp": ("mlp_tokens", "mlp_channels"), "order": ("{i}", "{i}")}
    one, other = swaps[wrong]
    swap = {one: other, other: one}
    rows = []
    for row in timm.rows:
        foreign = ".".join(swap.get(part, part) for part in row.foreign.split("."))
        pattern = row.canonical_axes if wrong == "order" and "mlp_tokens" in foreign else row.pattern
        rows.append(dataclasses.replace(row, foreign=foreign, pattern=pattern))
    config = SQUARE
    params, images = random_params(config, 14), random_images(config, 15)
    with pytest.warns(ConventionWarning):
        state = convert(params, to=dataclasses.replace(timm, rows=tuple(rows)), config=config)
    model = timm_mixer(config, **TANH).double()
    model.load_state_dict(state, strict=True)
    assert residual(run_torch(model, images), run_official(config, params, images)) > 1e-3


@pytest.fixture(scope="module")
def b16() -> Any:
    config = MixerConfig.from_name("B/16")
    return config, {name: array.astype(np.float32) for name, array in random_params(config, 16).items()}


def test_timm_s_own_b16_loads_ours_and_computes_the_official_logits_once_told_the_activation(b16: Any) -> None:
    config, params = b16
    with pytest.warns(ConventionWarning, match=r"pass act_layer=partial\(nn.GELU, approximate='tanh'\)"):
        state = convert(params, to="timm", config=config)
    images = random_images(config, 17)[:1]
    expected = run_official(config, params, images)
    for kwargs, agrees in ((TANH, True), ({}, False)):
        model = import_timm().create_model("mixer_b16_224", **kwargs)
        model.load_state_dict(state, strict=True)
        assert (residual(run_torch(model, images), expected) <= 1e-12) == agrees


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
def test_b16_npz_to_timm_safetensors_to_npz_is_byte_equal(b16: Any, tmp_path: Path) -> None:
    _, params = b16
    np.savez(tmp_path / "published.npz", **params)
    save(convert(load(tmp_path / "published.npz"), to="timm"), tmp_path / "timm.safetensors")
    save(convert(load(tmp_path / "timm.safetensors"), to="linen"), tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz") as back:
        assert not bit_differences({name: back[name] for name in back.files}, params)
    assert load(tmp_path / "back.npz").config.name == "B/16"
