"""The nnx model is the linen one: the same tree, the same function, the same start."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.xla_options import cheap_jit
from mixer_equiv import Checkpoint, ConversionError, MixerConfig, convert
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.config import ACTIVATION_NAMES
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.equivalence.sides.runners import run_flax, stage_names
from mixer_equiv.models import nnx as nnx_models
from mixer_equiv.models.flax import model as linen_models
from tests.support.structures import run_official

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
SMALL = DEFAULT_CONFIG.replace(num_blocks=2)
HEADLESS = SMALL.replace(num_classes=0)


def new_model(config: MixerConfig) -> Any:
    return nnx_models.MlpMixer(config, rngs=nnx.Rngs(0))


def loaded(config: MixerConfig, params: Any) -> Any:
    """A model that was given these weights in the documented way."""
    checkpoint = convert(Checkpoint.from_arrays(params, config=config), to="nnx")
    model = new_model(config)
    nnx.update(model, checkpoint.params)
    return model


def tree(model: Any) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def shapes(params: Any) -> Any:
    return {name: leaf.shape for name, leaf in flatten(params)}


def linen_shapes(config: MixerConfig) -> Any:
    model, images = linen_models.MlpMixer(config), jnp.zeros((1, *config.image_hw, config.in_channels))
    return shapes(jax.eval_shape(model.init, jax.random.key(0), images)["params"])


def run_nnx(model: Any, images: Any) -> Any:
    with jax_full_precision():
        return {name: np.asarray(tap) for name, tap in model(jnp.asarray(images), taps=True).items()}


def test_the_tree_is_the_linen_one() -> None:
    for config in (DEFAULT_CONFIG, SQUARE, HEADLESS):
        found = shapes(tree(nnx.eval_shape(partial(new_model, config))))
        assert found == linen_shapes(config)
        assert len(found) == 12 * config.num_blocks + 4 + 2 * bool(config.num_classes)


def test_there_is_no_state_but_the_parameters() -> None:
    model = new_model(SMALL)
    assert shapes(nnx.to_pure_dict(nnx.state(model))) == shapes(tree(model))


@pytest.mark.parametrize("config", [DEFAULT_CONFIG, SQUARE], ids=["all sizes different", "all sizes equal"])
def test_nnx_and_linen_agree_on_every_tap(config: MixerConfig) -> None:
    params, images = random_params(config, 1), random_images(config, 2)
    expected = run_flax(config, params, images)
    taps = run_nnx(loaded(config, params), images)
    assert list(taps) == list(expected) == stage_names(config)
    assert {tap.dtype for tap in taps.values()} == {np.dtype("float64")}
    assert {name: residual(taps[name], expected[name]) <= 1e-12 for name in taps} == dict.fromkeys(taps, True)
    assert residual(taps["logits"], run_official(config, params, images)) <= 1e-12


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_nnx_and_linen_agree_under_every_convention(activation: Any) -> None:
    config = SMALL.replace(activation=activation, layer_norm_eps=1e-3)
    params, images = random_params(config, 3), random_images(config, 4)
    logits = run_nnx(loaded(config, params), images)["logits"]
    assert residual(logits, run_flax(config, params, images)["logits"]) <= 1e-12
    assert residual(logits, run_flax(config.replace(layer_norm_eps=1e-5), params, images)["logits"]) > 1e-8


def test_without_classes_the_pooled_features_are_returned() -> None:
    params, images = random_params(HEADLESS, 5), random_images(HEADLESS, 6)
    model = loaded(HEADLESS, params)
    expected = run_flax(HEADLESS, params, images)["pooled"]
    assert list(run_nnx(model, images))[-1] == "pooled"
    with jax_full_precision():
        assert residual(np.asarray(model(images)), expected) <= 1e-12


def test_indivisible_images_are_padded_as_linen_pads_them() -> None:
    params, images = random_params(SMALL, 7), np.random.default_rng(8).standard_normal((2, 7, 8, 3))
    expected = run_flax(SMALL, params, images)["logits"]
    assert residual(run_nnx(loaded(SMALL, params), images)["logits"], expected) <= 1e-12


def test_images_of_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(TypeError, match="same shape"):
        new_model(SMALL)(jnp.zeros((2, 8, 12, 3)))


def test_logits_alone_are_returned_unless_taps_are_asked_for() -> None:
    model, images = loaded(SMALL, random_params(SMALL, 9)), random_images(SMALL, 10).astype(np.float32)
    assert np.array_equal(model(images), model(images, taps=True)["logits"])


def test_jit_computes_the_same() -> None:
    params, images = random_params(SMALL, 11), random_images(SMALL, 12)
    with jax_full_precision():
        logits = nnx.jit(lambda model, images: model(images))(loaded(SMALL, params), images)
    assert residual(np.asarray(logits), run_flax(SMALL, params, images)["logits"]) <= 1e-12


def test_gradients_agree() -> None:
    params, images = random_params(SMALL, 13), random_images(SMALL, 14)
    weights = np.random.default_rng(15).standard_normal((len(images), SMALL.num_classes))
    linen = linen_models.MlpMixer(SMALL)
    with jax_full_precision():
        loss = jax.grad(lambda params: jnp.sum(weights * linen.apply({"params": params}, images)))
        expected = dict(flatten(cheap_jit(loss)(unflatten(params))))
        gradients = nnx.jit(nnx.grad(lambda model: jnp.sum(weights * model(images))))(loaded(SMALL, params))
    found = dict(flatten(nnx.to_pure_dict(gradients)))
    assert found.keys() == expected.keys()
    # Relative to the largest, as LayerNorm makes some gradients zero: those of token mixing's last bias.
    largest = max(map(np.asarray, expected.values()), key=np.linalg.norm)
    apart = {name: residual(np.asarray(found[name]), np.asarray(expected[name]), largest) for name in found}
    assert max(apart.values()) <= 1e-12, apart


def test_initialises_as_linen_does() -> None:
    config = MixerConfig.from_name("S/32", image_size=64, num_blocks=2)
    ours = dict(flatten(tree(new_model(config))))
    init = cheap_jit(linen_models.MlpMixer(config).init)
    theirs = dict(flatten(init(jax.random.key(0), jnp.ones((1, 64, 64, 3)))["params"]))
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        mine, leaf = np.asarray(ours[name]), np.asarray(leaf)
        assert mine.dtype == leaf.dtype
        if leaf.std() == 0:
            np.testing.assert_array_equal(mine, leaf, err_msg=name)
        elif leaf.size > 500:
            assert abs(mine.std() / leaf.std() - 1) < 0.1, name
            assert abs(np.abs(mine).max() / np.abs(leaf).max() - 1) < 0.2, name


def test_blocks_do_not_start_alike() -> None:
    params = dict(flatten(tree(new_model(SMALL))))
    kernels = [name for name in params if name.endswith("kernel") and name.startswith("MixerBlock_0")]
    assert len(kernels) == 4
    assert all(not np.array_equal(params[name], params[name.replace("_0", "_1", 1)]) for name in kernels)


def test_params_go_in_and_come_out_bit_exactly() -> None:
    params = {name: array.astype(np.float32) for name, array in random_params(SMALL, 16).items()}
    found = {name: np.asarray(leaf) for name, leaf in flatten(tree(loaded(SMALL, params)))}
    assert not bit_differences(found, params)


def without(name: str) -> Any:
    return lambda params: {key: array for key, array in params.items() if key != name}


BROKEN = {
    "missing": without("head/bias"),
    "a block is missing": lambda params: {k: a for k, a in params.items() if not k.startswith("MixerBlock_1")},
    "unknown": lambda params: {**params, "stem/gain": np.ones(3)},
    "renamed": lambda params: {k.replace("head/kernel", "head/weight"): a for k, a in params.items()},
    "mis-shaped": lambda params: {**params, "head/bias": np.ones(9)},
    "transposed": lambda params: {**params, "head/kernel": params["head/kernel"].T},
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_params_that_do_not_fit_are_refused_as_documented(wrong: Any) -> None:
    with pytest.raises(ConversionError):
        loaded(SMALL, BROKEN[wrong](random_params(SMALL, 17)))


# Wrong parameters that calls of nnx accept, as documented in the module. Where this fails, shorten that warning.
LAX = {
    "update": (nnx.update, {"missing", "a block is missing", "unknown", "mis-shaped", "transposed", "renamed"}),
    "replace_by_pure_dict": (
        lambda model, params: nnx.replace_by_pure_dict(nnx.state(model, nnx.Param), params),
        {"missing", "a block is missing", "mis-shaped", "transposed"},
    ),
    "merge": (lambda model, params: nnx.merge(nnx.graphdef(model), params), {"renamed", "mis-shaped", "transposed"}),
}


@pytest.mark.parametrize("call", LAX)
def test_nnx_s_own_calls_are_as_lax_as_documented(call: Any) -> None:
    give, expected = LAX[call]
    accepted = set()
    for wrong, broken in BROKEN.items():
        try:
            give(new_model(SMALL), unflatten(broken(random_params(SMALL, 18))))
            accepted.add(wrong)
        except ValueError:
            pass
    assert accepted == expected


def test_flat_names_are_lost_on_nnx_as_documented() -> None:
    model, params = new_model(SMALL), random_params(SMALL, 21)
    before = dict(flatten(tree(model)))
    nnx.update(model, params)
    assert all(np.array_equal(leaf, before[name]) for name, leaf in flatten(tree(model)))
    assert getattr(model, "stem/kernel") is params["stem/kernel"]


def swapped(one: Any, other: Any) -> Any:
    """A fault to plant: two modules of a model change places."""

    def plant(model: Any) -> None:
        first, second = getattr(model, one), getattr(model, other)
        setattr(model, one, second)
        setattr(model, other, first)

    return plant


def set_epsilon(model: Any) -> None:
    model.pre_head_layer_norm.epsilon = 1e-5


def set_activation(model: Any) -> None:
    model.MixerBlock_11.token_mixing.activation = "gelu"


FAULTS = {
    "blocks 1 and 10": (swapped("MixerBlock_1", "MixerBlock_10"), "MixerBlock_1/token_mixing"),
    "norms": (lambda model: swapped("LayerNorm_0", "LayerNorm_1")(model.MixerBlock_3), "MixerBlock_3/token_mixing"),
    "mixing": (
        lambda model: swapped("token_mixing", "channel_mixing")(model.MixerBlock_4),
        "MixerBlock_4/token_mixing",
    ),
    "activation": (set_activation, "MixerBlock_11/token_mixing"),
    "epsilon": (set_epsilon, "pre_head_layer_norm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen_where_it_is(fault: Any) -> None:
    """With all sizes equal, where shapes decide nothing."""
    plant, stage = FAULTS[fault]
    params, images = random_params(SQUARE, 19), random_images(SQUARE, 20)
    expected = run_flax(SQUARE, params, images)
    model = loaded(SQUARE, params)
    plant(model)
    taps = run_nnx(model, images)
    apart = [name for name in taps if residual(taps[name], expected[name]) > 1e-12]
    assert apart == list(taps)[list(taps).index(stage) :]
