"""All formulations, in both frameworks, are one function with one gradient, which is the NumPy reference's.

At the end of the file faults are planted in single formulations, and seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.model_functions import (
    FLAX_FUNCTIONS,
    NNX_FUNCTION,
    REFERENCE,
    TORCH_FUNCTIONS,
    ModelFunction,
    derivatives,
)
from mixer_equiv import Formulation, MixerConfig
from mixer_equiv.equivalence.judge.gradients import random_cotangent
from mixer_equiv.equivalence.mixer.official_program import UNOBSERVABLE
from mixer_equiv.equivalence.policy import gradient_residuals, residual
from mixer_equiv.models.flax import activations as jax_activations
from mixer_equiv.models.flax import formulations as flax_formulations
from mixer_equiv.models.torch import formulations as torch_formulations
from mixer_equiv.models.torch import replacement_layers
from mixer_equiv.models.torch.replacement_layers import Mixing
from mixer_equiv.operations import OPERATIONS
from mixer_equiv.testing.strategies import FEW_CONFIGS
from tests.support.mixers import ANY_CONFIG, COMPILED, FUZZ, POLICY, SEEDS, SOME_FLAX, STYLES, Mixer, assert_same

pytestmark = pytest.mark.usefixtures("full_precision")


# All formulations are one function


def assert_one_function(programs: tuple[ModelFunction, ...], mixer: Mixer) -> None:
    """Every two agree on outputs, the reference among them, and all have the gradients of the first.

    The gradient of a parameter on which no output depends is zero, so that only its rounding could be compared: it must
    be noise beside all gradients together.
    """
    config, params, images = mixer.config, mixer.params, mixer.images
    cotangent = random_cotangent(config, len(images), mixer.seed)
    made = [program.gradients(config, params, images, cotangent) for program in programs]
    outputs = np.stack([REFERENCE(config, params, images), *(outputs for outputs, _ in made)])
    assert furthest_pair(outputs) <= POLICY.residual
    unseen = {UNOBSERVABLE.format(i=i) for i in range(config.num_blocks)}
    for program, (_, gradients) in zip(programs, made, strict=True):
        whole = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
        assert all(np.linalg.norm(gradients[name]) <= POLICY.gradients * whole for name in unseen), program
        distances = gradient_residuals(gradients, made[0][1])
        worst = max(distances.keys() - unseen, key=lambda name: distances[name])
        assert distances[worst] <= POLICY.gradients, (program, worst)


def furthest_pair(outputs: np.ndarray) -> float:
    """The largest residual between any two of `outputs` (programs, ...)."""
    flat = outputs.reshape(len(outputs), -1)
    distances = np.linalg.norm(flat[:, None] - flat, axis=-1)
    scale = np.linalg.norm(flat, axis=-1).min()
    return float(distances.max() / scale) if np.isfinite(distances).all() and scale else np.inf


AS_DRAWN = st.builds(Mixer, st.none(), st.sampled_from(COMPILED), SEEDS, st.sampled_from(["normal", "heavy_tailed"]))


@given(mixer=AS_DRAWN)
def test_all_formulations_in_both_frameworks_are_one_function_with_one_gradient(mixer: Mixer) -> None:
    assert_one_function((*TORCH_FUNCTIONS, *FLAX_FUNCTIONS, NNX_FUNCTION), mixer)


@pytest.mark.parametrize("config", FEW_CONFIGS[1:], ids=lambda config: config.activation)
def test_sizes_channels_and_activations_change_nothing_about_that(config: MixerConfig) -> None:
    for style in ("normal", "heavy_tailed"):
        assert_one_function((TORCH_FUNCTIONS[0], *SOME_FLAX[:2]), Mixer(None, config, 0, style))


@given(
    mixer=st.builds(Mixer, st.none(), ANY_CONFIG, SEEDS, STYLES),
    others=st.lists(st.sampled_from(TORCH_FUNCTIONS[1:]), min_size=1, max_size=6, unique=True),
)
def test_formulations_are_one_function_whatever_the_sizes(mixer: Mixer, others: list[ModelFunction]) -> None:
    assert_one_function((TORCH_FUNCTIONS[0], *others), mixer)


def assert_gradients_of_the_reference(mixer: Mixer) -> None:
    """Compared along a random direction of each parameter, on the scale of `gradient_residuals`."""
    config, params, images = mixer.config, mixer.params, mixer.images
    cotangent = random_cotangent(config, len(images), mixer.seed)
    _, gradients = mixer.program.gradients(config, params, images, cotangent)
    directions = {name: unit(mixer.rng.standard_normal(array.shape)) for name, array in params.items()}
    slopes = derivatives(config, params, images, cotangent, directions)
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients.values()))
    for name, gradient in gradients.items():
        scale = max(np.linalg.norm(gradient), 1e-3 * whole)
        assert abs(slopes[name] - (gradient * directions[name]).sum()) <= POLICY.gradients * scale, name


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array)


@given(
    mixer=st.builds(
        Mixer, st.sampled_from(TORCH_FUNCTIONS), ANY_CONFIG, SEEDS, st.sampled_from(["normal", "heavy_tailed"])
    )
)
def test_gradients_are_the_reference_s_derivatives_by_the_complex_step(mixer: Mixer) -> None:
    assert_gradients_of_the_reference(mixer)


@given(mixer=st.builds(Mixer, st.just(REFERENCE), ANY_CONFIG, SEEDS, st.sampled_from(["normal", "heavy_tailed"])))
def test_the_reference_s_own_gradients_are_its_derivatives(mixer: Mixer) -> None:
    assert_gradients_of_the_reference(mixer)


# Rows whose mean is far larger than their spread


def assert_apart_by_rounding_alone(mixer: Mixer) -> None:
    """The verdict of the policy on the residuals from torch in both precisions."""
    at64, at32 = (
        residual(mixer.run(mixer.params, images), TORCH_FUNCTIONS[0](mixer.config, mixer.params, images))
        for images in (mixer.images, mixer.images.astype(np.float32))
    )
    assert POLICY.rate(at64, at32) in ("same", "rounding")


def large_means(fast: bool) -> st.SearchStrategy[Mixer]:
    programs = [dataclasses.replace(program, fast=fast) for program in (FLAX_FUNCTIONS if FUZZ else SOME_FLAX[:2])]
    nnx = dataclasses.replace(NNX_FUNCTION, fast=fast)
    return st.builds(Mixer, st.sampled_from([*programs, nnx]), st.sampled_from(COMPILED), SEEDS, st.just("large_mean"))


@given(mixer=large_means(fast=True))
def test_on_large_means_the_fast_variance_is_apart_by_rounding_alone(mixer: Mixer) -> None:
    assert_apart_by_rounding_alone(mixer)


@given(mixer=large_means(fast=False))
def test_on_large_means_a_variance_in_two_passes_agrees(mixer: Mixer) -> None:
    assert_same(mixer.outputs, REFERENCE(mixer.config, mixer.params, mixer.images))
    assert_same(mixer.outputs, TORCH_FUNCTIONS[0](mixer.config, mixer.params, mixer.images))


# Faults that break them


def flipped(x: Any, layer: Any) -> Any:
    """A true convolution, with flipped filters, in place of a cross-correlation."""
    return F.conv2d(x[:, None], layer.weight.flip(1)[:, None, None], layer.bias).squeeze(-1).transpose(1, 2)


def bias_by_channel(x: Any, layer: Any) -> Any:
    """The repeated biases in the order of `repeat_interleave`."""
    batch, channels, _ = x.shape
    filters, biases = layer.weight[:, None].repeat(channels, 1, 1), layer.bias.repeat_interleave(channels)
    return F.conv1d(x, filters, biases, groups=channels).reshape(batch, channels, -1)


def half_detached(x: Any, layer: Any) -> Any:
    """The right values, and half of the gradient."""
    return (layer.weight / 2 + layer.weight.detach() / 2) @ x + layer.bias[:, None]


def in_float32(x: Any, kernel: Any, bias: Any) -> Any:
    """Through float32 and back."""
    return (kernel.T @ x.astype(jnp.float32)).astype(x.dtype) + bias[:, None]


def reshaped(x: Any, kernel: Any, bias: Any) -> Any:
    """A kernel brought into shape without a transpose."""
    return kernel.reshape(kernel.shape[::-1]) @ x + bias[:, None]


@jax.custom_jvp
def derived_as_erf(x: Any) -> Any:
    """The right values, and the derivative of the GELU with erf."""
    return jax.nn.gelu(x, approximate=True)


@derived_as_erf.defjvp
def _derived_as_erf_jvp(primals: Any, tangents: Any) -> Any:
    return derived_as_erf(*primals), jax.jvp(partial(jax.nn.gelu, approximate=False), primals, tangents)[1]


Planted = tuple[Mapping[str, Any], str, Any, ModelFunction]
FAULTS: dict[str, Planted] = {
    "a flipped filter": (
        torch_formulations.TOKEN_MIXINGS,
        "shared_conv",
        Mixing(flipped, -1),
        ModelFunction("torch", Formulation(tokens="shared_conv")),
    ),
    "biases in another order": (
        torch_formulations.TOKEN_MIXINGS,
        "depthwise_conv",
        Mixing(bias_by_channel, -1),
        ModelFunction("torch", Formulation(tokens="depthwise_conv")),
    ),
    "half of a gradient": (
        torch_formulations.TOKEN_MIXINGS,
        "matmul",
        Mixing(half_detached, -2),
        ModelFunction("torch", Formulation(tokens="matmul")),
    ),
    "patches by columns": (
        replacement_layers.PATCH_PATTERNS,
        "linear",
        ("b c (h ph) (w pw) -> b (w h) (ph pw c)", "d c ph pw -> d (ph pw c)"),
        ModelFunction("torch", Formulation(patch="linear")),
    ),
    "pixels by columns": (
        flax_formulations.PATCH_PATTERNS,
        "linear",
        ("b (h ph) (w pw) c -> b h w (pw ph c)", "ph pw c d -> (ph pw c) d"),
        ModelFunction("flax", Formulation(patch="linear")),
    ),
    "a product in float32": (
        flax_formulations.TOKEN_MIXINGS,
        "matmul",
        flax_formulations.Mixing(in_float32, -2),
        ModelFunction("flax", Formulation(tokens="matmul")),
    ),
    "the derivative of another activation": (
        jax_activations.ACTIVATIONS,
        "gelu_tanh",
        derived_as_erf,
        ModelFunction("flax", Formulation()),
    ),
    "a kernel without its transpose": (
        flax_formulations.CHANNEL_MIXINGS,
        "conv1d",
        flax_formulations.Mixing(reshaped, -2),
        ModelFunction("flax", Formulation(channels="conv1d")),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_formulation_with_a_fault_is_another_function(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, key, value, program = FAULTS[fault]
    monkeypatch.setitem(table, key, value)
    unlike_others = FEW_CONFIGS[0].replace(
        layer_norm_eps=2e-6
    )  # an eps of its own, so that no compiled program is reused
    with pytest.raises(AssertionError):
        assert_one_function((TORCH_FUNCTIONS[0], program), Mixer(None, unlike_others, 0))


def test_two_that_are_apart_are_seen_whatever_their_distance_from_the_others() -> None:
    outputs = np.ones((3, 4, 5))
    outputs[1] += 0.6e-12
    outputs[2] -= 0.6e-12
    assert furthest_pair(outputs[:2]) < 1e-12 < furthest_pair(outputs)
    outputs[1, 2, 3] = np.nan
    assert furthest_pair(outputs) == np.inf


def test_gradients_of_another_activation_are_not_the_reference_s() -> None:
    def wrong(config: MixerConfig, *arguments: Any) -> Any:
        return TORCH_FUNCTIONS[0].gradients(config.replace(activation="gelu"), *arguments)

    with pytest.raises(AssertionError):
        assert_gradients_of_the_reference(Mixer(SimpleNamespace(gradients=wrong), FEW_CONFIGS[0], 0))


def test_gradients_of_the_reference_with_a_fault_are_not_its_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_mean(cotangent: Any, x: Any, scale: Any, bias: Any, eps: float) -> Any:
        inner, *others = layer_norm.vjp(cotangent, x, scale, bias, eps)
        return (inner + (cotangent * scale).mean(axis=-1, keepdims=True), *others)

    layer_norm = OPERATIONS["layer_norm"]
    monkeypatch.setitem(OPERATIONS, "layer_norm", layer_norm._replace(vjp=without_the_mean))
    with pytest.raises(AssertionError):
        assert_gradients_of_the_reference(Mixer(REFERENCE, FEW_CONFIGS[0], 0))


@pytest.mark.parametrize("change", [{"layer_norm_eps": 1e-5}, {"activation": "gelu"}], ids=str)
def test_on_large_means_another_function_is_not_taken_for_rounding(change: dict[str, Any]) -> None:
    def wrong(config: MixerConfig, params: Any, images: np.ndarray) -> np.ndarray:
        return TORCH_FUNCTIONS[0](config.replace(**change), params, images)

    with pytest.raises(AssertionError):
        assert_apart_by_rounding_alone(Mixer(wrong, FEW_CONFIGS[0], 0, "large_mean"))


@pytest.mark.parametrize("program", [*SOME_FLAX[:2], NNX_FUNCTION], ids=str)
def test_the_fast_variance_does_lose_digits_on_large_means(program: ModelFunction) -> None:
    mixer = Mixer(program, FEW_CONFIGS[0], 0, "large_mean")
    with pytest.raises(AssertionError):
        assert_same(mixer.outputs, REFERENCE(mixer.config, mixer.params, mixer.images))
