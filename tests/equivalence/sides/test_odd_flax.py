"""Flax models that do odd things: modes, random numbers, dtypes, collections beside the parameters."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch import Tensor, nn

from mixer_equiv import (
    ConfigError,
    MixerConfig,
    verify,
)
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from tests.support.odd import CONFIG, IMAGE
from tests.support.structures import PortMixer


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
    assert "arrays of other collections are left as init makes them: counters/calls" in report.warnings
    report = verify(Batched(), image=IMAGE)
    assert report.verdict == "different"
    assert [cause.name for cause in report.causes] == ["extra_affine"]
    said = "arrays of other collections are left as init makes them: batch_stats/"
    assert any(warning.startswith(said) for warning in report.warnings)


def test_an_image_that_one_of_our_models_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the image is 6x12, and this model of torch takes 8x9"):
        verify(TorchMixer(CONFIG), "flax", image=(3, 6, 12))
