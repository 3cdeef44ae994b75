"""The symmetries of the Mixer, each a property named for it, in every formulation and framework.

A law is a function that fails where it is broken. Properties draw what it is tried on, and at the end
of the file each law is shown to fail on a Mixer with a fault planted in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from benchmarks.model_functions import REFERENCE, Arrays
from mixer_equiv import MixerConfig, operations
from mixer_equiv.equivalence.sides.runners import stage_names
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from mixer_equiv.testing.strategies import FEW_CONFIGS
from tests.support.mixers import MIXERS, Mixer, assert_same

pytestmark = pytest.mark.usefixtures("full_precision")

LAWS: dict[str, Callable[[Mixer], None]] = {}
everywhere = pytest.mark.parametrize("of", MIXERS)


def law(function: Callable[[Mixer], None]) -> Callable[[Mixer], None]:
    LAWS[function.__name__] = function
    return function


def permuted(params: Arrays, axis: str, orders: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every parameter with its axis of this name in another order: one of `orders` for each block, or one for all."""
    result = {}
    blocks = sum(name.endswith("LayerNorm_0/scale") for name in params)
    for name, binding in LINEN.bindings(blocks, head="head/kernel" in params).items():
        axes = binding.row.canonical_axes.split()
        order = orders[int(name.split("/")[0].rpartition("_")[2])] if binding.row.in_block else orders[0]
        result[name] = np.take(params[name], order, axes.index(axis)) if axis in axes else params[name]
    return result


@law
def permuting_patches(mixer: Mixer) -> None:
    config, images = mixer.config, mixer.images
    (rows, columns), (ph, pw) = config.grid_hw, config.patch_hw
    order = mixer.rng.permutation(config.num_tokens)
    patches = images.reshape(len(images), rows, ph, columns, pw, -1).swapaxes(2, 3)
    moved = patches.reshape(len(images), rows * columns, ph, pw, -1)[:, order].reshape(patches.shape)
    changed = permuted(mixer.params, "tokens", [order] * config.num_blocks)
    assert_same(mixer.run(changed, moved.swapaxes(2, 3).reshape(images.shape)), mixer.outputs)


@law
def permuting_hidden_channels(mixer: Mixer) -> None:
    order = mixer.rng.permutation(mixer.config.hidden_dim)
    changed = permuted(mixer.params, "hidden", [order] * mixer.config.num_blocks)
    expected = mixer.outputs if mixer.config.num_classes else mixer.outputs[:, order]
    assert_same(mixer.run(changed), expected)


@law
def permuting_hidden_units(mixer: Mixer) -> None:
    config, changed = mixer.config, mixer.params
    for axis in ("tokens_mlp", "channels_mlp"):
        orders = [mixer.rng.permutation(config.axis_sizes[axis]) for _ in range(config.num_blocks)]
        changed = permuted(changed, axis, orders)
    assert_same(mixer.run(changed), mixer.outputs)


def folded(params: Arrays, norm: str, reader: str) -> dict[str, np.ndarray]:
    """The affine part of a LayerNorm put into the kernel and bias that read it."""
    scale, shift, kernel = params[f"{norm}/scale"], params[f"{norm}/bias"], params[f"{reader}/kernel"]
    return {
        **params,
        f"{norm}/scale": np.ones_like(scale),
        f"{norm}/bias": np.zeros_like(shift),
        f"{reader}/kernel": scale[:, None] * kernel,
        f"{reader}/bias": params[f"{reader}/bias"] + shift @ kernel,
    }


@law
def folding_layer_norm_1(mixer: Mixer) -> None:
    changed = mixer.params
    for i in range(mixer.config.num_blocks):
        changed = folded(changed, f"MixerBlock_{i}/LayerNorm_1", f"MixerBlock_{i}/channel_mixing/Dense_0")
    assert_same(mixer.run(changed), mixer.outputs)


@law
def folding_pre_head_layer_norm(mixer: Mixer) -> None:
    assert_same(mixer.run(folded(mixer.params, "pre_head_layer_norm", "head")), mixer.outputs)


@law
def zeroing_the_second_dense(mixer: Mixer) -> None:
    """Each branch in turn: the stream leaves it as it came, to the last bit."""
    stages = stage_names(mixer.config)[: 1 + 2 * mixer.config.num_blocks]
    for before, after in itertools.pairwise(stages):
        zeroed = {f"{after}/Dense_1/{leaf}": 0 * mixer.params[f"{after}/Dense_1/{leaf}"] for leaf in ("kernel", "bias")}
        taps = mixer.program.taps(mixer.config, {**mixer.params, **zeroed}, mixer.images)
        assert np.array_equal(taps[before], taps[after])


@law
def shifting_the_bias_that_no_output_sees(mixer: Mixer) -> None:
    unseen = {name: array for name, array in mixer.params.items() if name.endswith("token_mixing/Dense_1/bias")}
    shifted = {name: array + mixer.rng.standard_normal(array.shape) for name, array in unseen.items()}
    assert_same(mixer.run({**mixer.params, **shifted}), mixer.outputs)


@law
def splitting_a_batch(mixer: Mixer) -> None:
    alone = [mixer.run(mixer.params, mixer.images[i : i + 1]) for i in range(len(mixer.images))]
    assert_same(np.concatenate(alone), mixer.outputs)


@everywhere
@given(data=st.data())
def test_permuting_patches_with_the_token_weights_changes_nothing(of: str, data: st.DataObject) -> None:
    permuting_patches(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_permuting_hidden_channels_changes_nothing(of: str, data: st.DataObject) -> None:
    permuting_hidden_channels(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_permuting_hidden_units_of_either_mlp_changes_nothing(of: str, data: st.DataObject) -> None:
    permuting_hidden_units(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_layer_norm_1_s_affine_part_folds_into_the_channel_mlp(of: str, data: st.DataObject) -> None:
    folding_layer_norm_1(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_the_last_layer_norm_s_affine_part_folds_into_the_head(of: str, data: st.DataObject) -> None:
    mixer = data.draw(MIXERS[of])
    assume(mixer.config.num_classes)
    folding_pre_head_layer_norm(mixer)


@everywhere
@given(data=st.data())
def test_a_zeroed_second_dense_makes_its_branch_the_identity(of: str, data: st.DataObject) -> None:
    zeroing_the_second_dense(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_shifting_the_bias_of_the_second_token_dense_changes_nothing(of: str, data: st.DataObject) -> None:
    shifting_the_bias_that_no_output_sees(data.draw(MIXERS[of]))


@everywhere
@given(data=st.data())
def test_the_images_of_a_batch_do_not_know_each_other(of: str, data: st.DataObject) -> None:
    splitting_a_batch(data.draw(MIXERS[of]))


# Faults that break them


@dataclasses.dataclass(frozen=True)
class Planted:
    """The reference with one of its operations another one."""

    operation: str
    instead: Callable[..., np.ndarray]

    def __getattr__(self, name: str) -> Any:
        return self.instead if name == self.operation else getattr(operations, name)

    def taps(self, config: MixerConfig, params: Arrays, images: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):
            return ReferenceMixer(config).run(self, params, images)

    def __call__(self, config: MixerConfig, params: Arrays, images: np.ndarray) -> np.ndarray:
        return list(self.taps(config, params, images).values())[-1]


def with_positions(images: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    patches = operations.cut(images, patch)
    return patches + np.linspace(-1, 1, patches.shape[1])[:, None, None, None]


def in_two_groups(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    half = x.shape[-1] // 2
    groups = [operations.normalise(part, eps) for part in (x[..., :half], x[..., half:])]
    return np.concatenate(groups, axis=-1) * scale + bias


def of_half_of_the_units(x: np.ndarray, activation: str) -> np.ndarray:
    half = x.shape[-1] // 2
    return np.concatenate([operations.activate(x[..., :half], activation), x[..., half:]], axis=-1)


def with_scales_around_zero(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return operations.layer_norm(x, 1 + scale, bias, eps)


def without_mean(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return operations.normalise(x, eps, centred=False) * scale + bias


def over_the_batch(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    return operations.layer_norm(x - 0.1 * x.mean(axis=0), scale, bias, eps)


FAULTS = {
    "a position embedding": ("permuting_patches", Planted("cut", with_positions)),
    "LayerNorms of two groups": ("permuting_hidden_channels", Planted("layer_norm", in_two_groups)),
    "half of the units without activation": ("permuting_hidden_units", Planted("activate", of_half_of_the_units)),
    "scales around zero": ("folding_layer_norm_1", Planted("layer_norm", with_scales_around_zero)),
    "scales around zero, last": ("folding_pre_head_layer_norm", Planted("layer_norm", with_scales_around_zero)),
    "no residual": ("zeroing_the_second_dense", Planted("add", lambda stream, branch: branch)),
    "RMSNorm": ("shifting_the_bias_that_no_output_sees", Planted("layer_norm", without_mean)),
    "batch statistics": ("splitting_a_batch", Planted("layer_norm", over_the_batch)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_breaks_its_law(fault: str) -> None:
    name, planted = FAULTS[fault]
    for config in (config for config in FEW_CONFIGS if config.num_classes):
        for style in ("normal", "heavy_tailed"):
            LAWS[name](Mixer(REFERENCE, config, 0, style))
            with pytest.raises(AssertionError):
                LAWS[name](Mixer(planted, config, 0, style))


def test_every_law_has_a_fault_that_breaks_it() -> None:
    assert {name for name, _ in FAULTS.values()} == set(LAWS)
