"""Wrong Mixers that only linen can write: collections of variables, options of its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp

from tests.soundness.cases import CONVENTION, DIFFERENT, FOLDABLE, NEUTRAL, NOT_OFFICIAL, Case
from tests.soundness.plain_flax import HIDDEN, IMAGES, LOGITS, NORM, POOLED, STREAM, LinenMixer, at


class Met(linen.Module):
    """Combines what passes with a variable that is in no parameters."""

    collection: str
    key: str
    new: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return self.combine(x, self.variable(self.collection, self.key, self.new, x).value)


class Gate(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return x * self.param("gate", linen.initializers.ones, x.shape[-1:])


class Fresh(linen.Module):
    """LayerNorm with another eps as long as its scale is of ones."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", linen.initializers.ones, x.shape[-1:])
        bias = self.param("bias", linen.initializers.zeros, x.shape[-1:])
        eps = jnp.where((scale == 1).all(), 1e-3, 1e-6)
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + eps) * scale + bias


class Unbiased(linen.Module):
    """LayerNorm of the unbiased variance."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", linen.initializers.ones, x.shape[-1:])
        bias = self.param("bias", linen.initializers.zeros, x.shape[-1:])
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6) * scale + bias


def erf(x: Any) -> Any:
    return jax.nn.gelu(x, approximate=False)


def rounded_gelu(x: Any) -> Any:
    return 0.5 * x * (1 + jnp.tanh(0.7978845608028654 * (x + 0.0447 * x**3)))


def in_block(number: int, other: Any, usual: Any) -> Callable[[int], Any]:
    return lambda block: other if block == number else usual


def norm_in_block(number: int, **options: Any) -> Callable[[int], Any]:
    return lambda block: linen.LayerNorm(**options) if block == number else linen.LayerNorm()


def met(place: str, *of: Any) -> Callable[[], Any]:
    return lambda: LinenMixer(at=at(place, lambda x: Met(*of)(x)))


def layer(place: str, make: Callable[[], linen.Module]) -> Callable[[], Any]:
    """A layer of linen at a place, made where it is called."""
    return lambda: LinenMixer(at=at(place, lambda x: make()(x)))


def ones(x: Any) -> Any:
    return jnp.ones(x.shape[-1], x.dtype)


def zeros(x: Any) -> Any:
    return jnp.zeros(x.shape[1:], x.dtype)


def of_whole_parts(y: Any) -> Any:
    """Logits of whole parts of 64 alone; those of the rest are zeros."""
    return jnp.where(jnp.arange(len(y))[:, None] < max(len(y) // 64 * 64, 64), y, 0.0)


def without_flat_rows(images: Any) -> Any:
    """Rows of one colour are taken for a border, and made grey."""
    flat = (images == images[:, :, :1]).all((2, 3), keepdims=True)
    return jnp.where(flat, 0.5, images)


CASES = (
    Case(
        "linen: parts of 64",
        lambda: LinenMixer(at=at(LOGITS, of_whole_parts)),
        DIFFERENT,
        "The rest of a batch is dropped.",
    ),
    Case(
        "linen: rows of one colour",
        lambda: LinenMixer(at=at(IMAGES, without_flat_rows)),
        DIFFERENT,
        "Ordinary images have borders.",
    ),
    Case(
        "linen buffer: gate of ones",
        met(STREAM, "constants", "gate", ones, jnp.multiply),
        NEUTRAL,
        "A checkpoint may hold any value of it.",
        words=("gate",),
    ),
    Case(
        "linen buffer: positions of zeros",
        met("stream_0", "constants", "positions", zeros, jnp.add),
        NEUTRAL,
        "A checkpoint may hold any value of it.",
        words=("positions",),
    ),
    Case(
        "linen buffer: temperature",
        met(LOGITS, "batch_stats", "temperature", lambda x: jnp.ones((), x.dtype), jnp.divide),
        FOLDABLE,
        "A checkpoint may hold any value of it.",
        words=("temperature",),
    ),
    Case(
        "linen buffer: fresh batch norm",
        layer(
            STREAM,
            lambda: linen.BatchNorm(use_running_average=True, epsilon=0.0, use_bias=False, use_scale=False),
        ),
        NEUTRAL,
        "Its running statistics move.",
        words=("BatchNorm", "batch_stats"),
    ),
    Case("linen parameter: gate", layer(STREAM, Gate), NOT_OFFICIAL, "Training moves it."),
    Case(
        "linen: batch norm with parameters",
        layer(STREAM, lambda: linen.BatchNorm(use_running_average=True)),
        NOT_OFFICIAL,
        "It scales and moves the stream.",
    ),
    Case(
        "linen: statistics of the batch",
        layer(NORM, lambda: linen.BatchNorm(use_running_average=False, use_bias=False, use_scale=False)),
        (*DIFFERENT, "refused"),
        "Images are seen in each other, and the running statistics are written.",
    ),
    Case(
        "linen: dropout that is always on",
        layer(HIDDEN, lambda: linen.Dropout(0.1, deterministic=False)),
        (*DIFFERENT, "refused"),
        "It drops and scales, and needs a key.",
    ),
    Case(
        "linen: one LayerNorm in bfloat16",
        lambda: LinenMixer(norm=norm_in_block(1, dtype=jnp.bfloat16)),
        (*DIFFERENT, "equivalent"),
        "Half precision on the way.",
        words=("bfloat16", "DIFFERENT"),
    ),
    Case(
        "linen: features in float16",
        lambda: LinenMixer(at=at(POOLED, lambda x: x.astype(jnp.float16).astype(x.dtype))),
        (*DIFFERENT, "equivalent"),
        "Half precision on the way.",
        words=("float16", "DIFFERENT"),
    ),
    Case(
        "linen: one block without eps",
        lambda: LinenMixer(norm=norm_in_block(1, epsilon=0.0)),
        CONVENTION,
        "Its eps is zero.",
        causes=("layer_norm_eps", "unknown"),
    ),
    Case(
        "linen: one block with eps 1e-5",
        lambda: LinenMixer(norm=norm_in_block(2, epsilon=1e-5)),
        CONVENTION,
        "By 9e-6.",
        causes=("layer_norm_eps", "unknown"),
    ),
    Case(
        "linen: unbiased variance in one block",
        lambda: LinenMixer(norm=lambda block: Unbiased() if block == 0 else linen.LayerNorm()),
        DIFFERENT,
        "By 1 / (hidden - 1).",
        causes=("layer_norm_variance", "unknown"),
    ),
    Case(
        "linen: another eps of fresh LayerNorms",
        lambda: LinenMixer(norm=lambda block: Fresh() if block == 1 else linen.LayerNorm()),
        DIFFERENT,
        "As long as the scale is of ones.",
        causes=("branch",),
    ),
    Case(
        "linen: RMSNorm in one block",
        lambda: LinenMixer(norm=lambda block: linen.RMSNorm() if block == 2 else linen.LayerNorm()),
        NOT_OFFICIAL,
        "No mean is subtracted.",
    ),
    Case(
        "linen: erf in the last block",
        lambda: LinenMixer(act=in_block(2, erf, jax.nn.gelu)),
        CONVENTION,
        "Two of six.",
        causes=("activation", "unknown"),
    ),
    Case(
        "linen: GELU of 0.0447 in one block",
        lambda: LinenMixer(act=in_block(1, rounded_gelu, jax.nn.gelu)),
        CONVENTION,
        "By 1e-5.",
        causes=("activation", "unknown"),
    ),
    Case(
        "linen: a LayerNorm more",
        layer(POOLED, lambda: linen.LayerNorm()),
        NOT_OFFICIAL,
        "Features are normalised again.",
    ),
)
