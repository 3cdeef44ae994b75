import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.tutorial import GRID, TUTORIAL_CONFIGS
from benchmarks.xla_options import cheap_jit
from mixer_equiv import MixerConfig, activations, convert, verify
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.config import ACTIVATION_NAMES
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.equivalence.sides.runners import run_flax, run_reference, run_torch, stage_names
from mixer_equiv.models.flax import model as flax_models
from mixer_equiv.models.torch import model as torch_models
from mixer_equiv.testing.strategies import configs
from tests.support.structures import official_mixer, run_official

# Rows of two nearly equal channels, which LayerNorm spreads a thousandfold: residual 5e-11 by rounding.
ILL_CONDITIONED = {
    "num_classes": 0,
    "num_blocks": 5,
    "patch_size": 1,
    "image_size": 4,
    "hidden_dim": 2,
    "tokens_mlp_dim": 6,
    "channels_mlp_dim": 5,
    "activation": "gelu",
}


@pytest.mark.parametrize("number", range(128), ids=["-".join(map(str, point)) for point in GRID])
def test_the_tutorials_grid_agrees_on_parameters_shapes_and_outputs(number: Any) -> None:
    config = TUTORIAL_CONFIGS[number]
    params, images = random_params(config, seed=number), random_images(config, seed=1)
    model = torch_models.MlpMixer(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters
    assert sum(p.size for p in params.values()) == config.num_parameters

    expected = run_official(config, params, images)
    torch_logits = run_torch(config, params, images)["logits"]
    numpy_logits = run_reference(config, params, images)["logits"]
    assert expected.shape == torch_logits.shape == (len(images), config.num_classes)
    assert residual(torch_logits, expected) <= 1e-12
    assert residual(numpy_logits, expected) <= 1e-12
    assert residual(torch_logits, numpy_logits) <= 1e-12


def test_the_flax_model_has_the_official_tree_and_computes_the_official_logits() -> None:
    config = DEFAULT_CONFIG
    blank = jnp.zeros((1, *config.image_hw, config.in_channels))
    shapes = [
        {"/".join(path): leaf.shape for path, leaf in flatten_dict(tree["params"]).items()}
        for tree in (
            jax.eval_shape(m.init, jax.random.key(0), blank)
            for m in (flax_models.MlpMixer(config), official_mixer(config))
        )
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 150
    params, images = random_params(config, 3), random_images(config, 4)
    assert residual(run_flax(config, params, images)["logits"], run_official(config, params, images)) <= 1e-15


def test_the_flax_model_pads_indivisible_images_as_the_official_one() -> None:
    config = DEFAULT_CONFIG.replace(num_blocks=2)
    images = np.random.default_rng(0).standard_normal((2, 7, 8, 3))
    with jax.enable_x64(True):
        params = unflatten(random_params(config, 0))
        ours = flax_models.MlpMixer(config).apply({"params": params}, images)
        theirs = official_mixer(config).apply({"params": params}, images)
    assert residual(np.asarray(ours), np.asarray(theirs)) <= 1e-15


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_three_frameworks_agree_on_every_stage_under_every_convention(activation: Any) -> None:
    config = DEFAULT_CONFIG.replace(activation=activation, layer_norm_eps=1e-3)
    params, images = random_params(config, 5), random_images(config, 6)
    taps = [run(config, params, images) for run in (run_flax, run_torch, run_reference)]
    assert [list(t) for t in taps] == [stage_names(config)] * 3
    for stage, (one, other) in itertools.product(stage_names(config), itertools.combinations(taps, 2)):
        assert residual(one[stage], other[stage]) <= 1e-13, stage


@pytest.mark.parametrize("changes", [{"activation": "gelu"}, {"layer_norm_eps": 1e-5}, {"activation": "quick_gelu"}])
def test_another_convention_is_another_function_in_every_framework(changes: Any) -> None:
    config = DEFAULT_CONFIG
    params, images = random_params(config, 7), random_images(config, 8)
    for run in (run_flax, run_torch, run_reference):
        one, other = (run(c, params, images)["logits"] for c in (config, config.replace(**changes)))
        assert residual(one, other) > 1e-8


@pytest.mark.parametrize("run", [run_flax, run_torch, run_reference])
def test_without_classes_the_pooled_features_are_returned(run: Any) -> None:
    config = DEFAULT_CONFIG.replace(num_classes=0)
    params = random_params(config, 9)
    assert not any(name.startswith("head") for name in params)
    taps = run(config, params, random_images(config, 10))
    assert list(taps)[-1] == "pooled"
    assert taps["pooled"].shape == (8, config.hidden_dim)


@given(config=configs(max_dim=9, allow_headless=True), seed=st.integers(0, 2**16))
@example(config=MixerConfig.from_dict(ILL_CONDITIONED), seed=0)
def test_torch_and_the_reference_are_the_same_function_for_any_config(config: MixerConfig, seed: int) -> None:
    report = verify("torch", "reference", kwargs=config.to_dict(), seed=seed)
    assert report.verdict in ("equivalent", "nothing_compared"), report
    # A single channel is always its own mean, and a LayerNorm of two keeps only a sign: images may not get past it.
    assert report.verdict == "equivalent" or config.hidden_dim <= 2, report


def test_models_return_logits_alone_unless_taps_are_asked_for() -> None:
    config = DEFAULT_CONFIG.replace(num_blocks=1)
    model = torch_models.MlpMixer(config)
    images = torch.randn(2, 3, 8, 9)
    assert torch.equal(model(images), model(images, taps=True)["logits"])
    variables = flax_models.MlpMixer(config).init(jax.random.key(0), jnp.ones((2, 8, 9, 3)))
    assert flax_models.MlpMixer(config).apply(variables, jnp.ones((2, 8, 9, 3))).shape == (2, 7)


def test_torch_initialises_as_flax_does() -> None:
    config = MixerConfig.from_name("S/32", image_size=64, num_blocks=2)
    torch.manual_seed(0)
    ours = convert(torch_models.MlpMixer(config).state_dict(), to="linen")
    ours = {"/".join(path): leaf for path, leaf in flatten_dict(ours).items()}
    init = cheap_jit(flax_models.MlpMixer(config).init)
    theirs = init(jax.random.key(0), jnp.ones((1, 64, 64, 3)))["params"]
    for path, leaf in flatten_dict(theirs).items():
        mine, leaf = ours["/".join(path)], np.asarray(leaf)
        if leaf.std() == 0:
            np.testing.assert_array_equal(mine, leaf)
        elif leaf.size > 500:
            assert abs(mine.std() / leaf.std() - 1) < 0.1
            assert abs(np.abs(mine).max() / np.abs(leaf).max() - 1) < 0.2


def test_mlp_dim_defaults_to_dim() -> None:
    assert torch_models.MlpBlock(5).dense_0.weight.shape == (5, 5)
    assert torch_models.MlpBlock(5, 3).dense_0.weight.shape == (3, 5)


def test_documented_parameter_names_are_the_real_ones() -> None:
    config = DEFAULT_CONFIG
    names = set(torch_models.MlpMixer(config).state_dict())
    documented = {
        part.format(i=i, leaf=leaf)
        for i in range(config.num_blocks)
        for leaf in ("weight", "bias")
        for part in (
            "stem.{leaf}",
            "blocks.{i}.layer_norm_0.{leaf}",
            "blocks.{i}.token_mixing.dense_0.{leaf}",
            "blocks.{i}.token_mixing.dense_1.{leaf}",
            "blocks.{i}.layer_norm_1.{leaf}",
            "blocks.{i}.channel_mixing.dense_0.{leaf}",
            "blocks.{i}.channel_mixing.dense_1.{leaf}",
            "pre_head_layer_norm.{leaf}",
            "head.{leaf}",
        )
    }
    assert names == documented


def test_the_torch_model_says_which_images_it_takes() -> None:
    model = torch_models.MlpMixer(DEFAULT_CONFIG)
    with pytest.raises(ValueError, match=r"images have shape \(2, 8, 9, 3\); this model takes \(batch, 3, 8, 9\)"):
        model(torch.randn(2, 8, 9, 3))


def test_both_ways_to_the_erf_gelu_are_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """By SciPy for many elements, and by the standard library for a few, or where SciPy is not installed."""
    x = np.concatenate([np.linspace(-12, 12, activations.MANY_ELEMENTS), [-40.0, 0.0, 40.0]])
    gelu, some = activations.ACTIVATIONS["gelu"], slice(None, None, 100)
    with_scipy = gelu(x)
    np.testing.assert_allclose(with_scipy[some], gelu(x[some]), rtol=1e-14, atol=0)
    activations._scipy_erfc.cache_clear()
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    try:
        without = gelu(x)
    finally:
        activations._scipy_erfc.cache_clear()
    np.testing.assert_allclose(with_scipy, without, rtol=1e-14, atol=0)
