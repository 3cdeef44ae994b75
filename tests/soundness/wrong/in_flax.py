"""Wrong Mixers that can be written in linen and in nnx alike, by a function at one place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import io_callback

from tests.soundness.cases import DIFFERENT, NOT_FOLLOWED, NOT_OFFICIAL, Case, Result
from tests.soundness.plain_flax import (
    EMBEDDED,
    HIDDEN,
    IMAGES,
    LAST_NORM,
    LOGITS,
    NORM,
    POOLED,
    STREAM,
    Function,
    LinenMixer,
    NnxMixer,
    at,
)

Make = Callable[[], Function]


def numbers(x: Any) -> Any:
    """The number of each image, of as many axes as `x`."""
    return jnp.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1))


# --- Place ---


def rolled_tokens(z: Any) -> Any:
    return jax.vmap(lambda image, i: jnp.roll(image, i, 0))(z, jnp.arange(len(z)))


def summed_by_scan(z: Any) -> Any:
    """Adds a little of the images before."""
    return lax.scan(lambda before, image: (before + image, image + 1e-6 * before), jnp.zeros_like(z[0]), z)[1]


def noise_of_a_fixed_key(y: Any) -> Any:
    return y + 1e-6 * jax.random.normal(jax.random.key(0), y.shape, y.dtype)


# --- Surroundings ---


def scaled_without_jit(x: Any) -> Any:
    return x if isinstance(x, jax.core.Tracer) else 1.01 * x


def shared_by_equal_images(y: Any) -> Any:
    return y / (y[:, None] == y[None]).all(-1).sum(1, keepdims=True)


# --- Decisions on numbers ---


def cond_on_max(x: Any) -> Any:
    return lax.cond(x.max() > 10, lambda x: x / 255, lambda x: x, x)


def cond_on_min(x: Any) -> Any:
    return lax.cond(x.min() >= 0, lambda x: (x - 0.5) / 0.5, lambda x: x, x)


def where_on_max(x: Any) -> Any:
    return jnp.where(x.max() > 10, x / 255, x)


def switch_on_mean(x: Any) -> Any:
    branches = [lambda x, scale=scale: x * scale for scale in (1.0, 1.01, 1.02)]
    return lax.switch(jnp.abs(x).max().astype(jnp.int32), branches, x)


def halved_while_large(x: Any) -> Any:
    return lax.while_loop(lambda x: jnp.abs(x).max() > 4, lambda x: x / 2, x)


def select_on_equal(x: Any) -> Any:
    return lax.select(jnp.all(x == 0), jnp.ones_like(x), x)


def per_image_cond(x: Any) -> Any:
    return jax.vmap(lambda image: lax.cond(image.mean() > 0.3, lambda i: 0.9 * i, lambda i: i, image))(x)


def python_if(x: Any) -> Any:
    return x / 255 if x.max() > 10 else x


def python_float(x: Any) -> Any:
    return x * 1.01 if float(x.mean()) > 0 else x


def through_numpy(x: Any) -> Any:
    return x / 255 if np.asarray(x).max() > 10 else x


def called_back(x: Any) -> Any:
    def scaled(x: Any) -> Any:
        x = np.asarray(x)
        return (x / 255 if x.max() > 10 else x).astype(x.dtype)

    return jax.pure_callback(scaled, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


# --- float32 ---


def scaled_in_float32(x: Any) -> Any:
    return x * 1.002 if x.dtype == jnp.float32 else x


def scaled_by_eps(x: Any) -> Any:
    return x * (1 + 1e4 * jnp.finfo(x.dtype).eps) if jnp.finfo(x.dtype).bits < 64 else x


def scaled_without_x64(x: Any) -> Any:
    return x if jax.config.jax_enable_x64 else x * 1.002


def absorbed(x: Any) -> Any:
    """Times one in float64; in float32 the small number is lost in the large one, and all is zero."""
    tiny = jnp.full_like(x, 2.0**-30)
    return x * ((1 + tiny) - 1) * 2.0**30


def clamped_in_float32(x: Any) -> Any:
    return jnp.clip(x, -1, 1) if x.dtype.itemsize == 4 else x


# --- Gradients ---


@jax.custom_vjp
def reversed_gradient(x: Any) -> Any:
    return x * 1


reversed_gradient.defvjp(lambda x: (x * 1, None), lambda _, gradient: (-gradient,))


@jax.custom_jvp
def louder_gradient(x: Any) -> Any:
    return x * 1


louder_gradient.defjvp(lambda primals, tangents: (primals[0] * 1, tangents[0] * 1.01))


def partly_stopped(x: Any) -> Any:
    return lax.stop_gradient(x) + 0.9 * (x - lax.stop_gradient(x))


# --- Memory ---


def counted(first: int) -> Function:
    calls = itertools.count(1)
    return lambda x: x * 1.001 if next(calls) >= first else x


def counted_in_list(first: int) -> Function:
    calls: list[None] = []

    def later(x: Any) -> Any:
        calls.append(None)
        return x * 1.001 if len(calls) >= first else x

    return later


def counted_in_array(first: int) -> Function:
    """Counted on the host while it runs, by an ordered callback."""
    calls = np.zeros((), np.int32)

    def count() -> Any:
        np.add(calls, 1, out=calls)
        return calls.copy()

    def later(x: Any) -> Any:
        call = io_callback(count, jax.ShapeDtypeStruct((), jnp.int32))
        return jnp.where(call >= first, x * 1.001, x)

    return later


def memoised() -> Function:
    memo: dict[Any, Any] = {}
    return lambda x: memo.setdefault((x.shape, x.dtype), x)


# --- Little ---


def only(index: tuple[Any, ...], function: Function) -> Function:
    return lambda x: jnp.asarray(x).at[index].set(function(x[index]))


def row(function: Function) -> Make:
    """A row's function without memory."""
    return lambda: function


# Name, the place, what makes the function, why it is wrong.
_Row = tuple[str, str, Make, str]
_DIFFERENT: tuple[_Row, ...] = (
    ("place: later logits", LOGITS, row(lambda y: y.at[1:].add(1)), "Only the first image is right."),
    ("place: leak from image 0", STREAM, row(lambda z: z + 0.1 * (z - z[:1])), "It is seen in all others."),
    ("place: leak of the mean", NORM, row(lambda z: z + 1e-6 * (z - z.mean(0))), "Right at batch size 1 alone."),
    ("place: batch rolled", LOGITS, row(lambda y: jnp.roll(y, 1, 0)), "Answers are a neighbour's."),
    ("place: tokens rolled", STREAM, row(rolled_tokens), "By the number of the image."),
    ("place: scaled by number", LOGITS, row(lambda y: y * (1 + 1e-9 * numbers(y))), "Image 1 by 1 + 1e-9."),
    ("place: earlier images added", STREAM, row(summed_by_scan), "A scan carries them along."),
    ("place: batch size 1", LOGITS, row(lambda y: y * 1.001 if len(y) == 1 else y), "One image alone is scaled."),
    ("place: batches", STREAM, row(lambda z: z * 1.001 if len(z) > 1 else z), "Batches are scaled."),
    ("place: noise of a fixed key", LOGITS, row(noise_of_a_fixed_key), "Each place has its own noise."),
    ("decision: cond on max", IMAGES, row(cond_on_max), "Large images are divided by 255."),
    ("decision: cond on min", IMAGES, row(cond_on_min), "Images without negative numbers are moved."),
    ("decision: cond in the stream", STREAM, row(cond_on_max), "A large stream is divided."),
    ("decision: where on max", IMAGES, row(where_on_max), "Large images are divided by 255."),
    ("decision: switch", HIDDEN, row(switch_on_mean), "Larger numbers are scaled."),
    ("decision: while_loop", IMAGES, row(halved_while_large), "Large images are halved."),
    ("decision: select", IMAGES, row(select_on_equal), "Black images are white."),
    ("decision: cond under vmap", IMAGES, row(per_image_cond), "Bright images are scaled."),
    ("memory: closure, call 2", LOGITS, lambda: counted(2), "Later calls are scaled."),
    ("memory: closure, call 4", STREAM, lambda: counted(4), "Later calls are scaled."),
    ("memory: list, call 3", HIDDEN, lambda: counted_in_list(3), "Later calls are scaled."),
    ("surroundings: without jit", HIDDEN, row(scaled_without_jit), "It is scaled where nothing is traced."),
    ("surroundings: 33 images", LOGITS, row(lambda x: x * (1 + 0.01 * (len(x) > 16))), "They are scaled."),
    ("surroundings: an image twice", LOGITS, row(shared_by_equal_images), "Its logits are halved."),
    ("gradient: the other sign", STREAM, row(reversed_gradient), "Its custom_vjp is another derivative."),
    ("gradient: louder", HIDDEN, row(louder_gradient), "Its custom_jvp is another derivative."),
    ("gradient: partly stopped", STREAM, row(partly_stopped), "A tenth of it is lost."),
)
_IN_FLOAT32: tuple[_Row, ...] = (
    ("float32: logits scaled", LOGITS, row(scaled_in_float32), "By 1.002."),
    ("float32: stream scaled by eps", STREAM, row(scaled_by_eps), "By 1.001."),
    ("float32: without x64", LOGITS, row(scaled_without_x64), "By 1.002."),
    ("float32: absorbed", LOGITS, row(absorbed), "Zeros, without a look at the dtype."),
    ("float32: clamped", NORM, row(clamped_in_float32), "At 1."),
)
_UNTRACED: tuple[_Row, ...] = (
    ("decision: Python's if", IMAGES, row(python_if), "Large images are divided by 255."),
    ("decision: float()", STREAM, row(python_float), "A positive mean scales."),
    ("decision: NumPy", IMAGES, row(through_numpy), "Large images are divided by 255."),
    ("decision: pure_callback", IMAGES, row(called_back), "Large images are divided by 255."),
    ("memory: io_callback, call 3", LOGITS, lambda: counted_in_array(3), "Later calls are scaled."),
    ("memory: memoised", STREAM, memoised, "A shape has one answer."),
)
_CHANGED: tuple[_Row, ...] = (
    ("reach: MLP clamped, 6", HIDDEN, row(lambda x: jnp.clip(x, -6, 6)), "Numbers beyond 6."),
    ("reach: MLP clamped, 50", HIDDEN, row(lambda x: jnp.clip(x, -50, 50)), "Numbers beyond 50."),
    ("reach: stream clamped, 30", STREAM, row(lambda x: jnp.clip(x, -30, 30)), "Numbers beyond 30."),
    ("reach: stream clamped, 100", STREAM, row(lambda x: jnp.clip(x, -100, 100)), "Numbers beyond 100."),
    ("reach: stream at most 60", STREAM, row(lambda x: jnp.minimum(x, 60)), "Numbers beyond 60."),
    (
        "reach: logits clamped, 20",
        LOGITS,
        row(lambda x: lax.clamp(jnp.asarray(-20, x.dtype), x, jnp.asarray(20, x.dtype))),
        "Numbers beyond 20.",
    ),
    ("reach: logits cut off, 40", LOGITS, row(lambda x: jnp.where(jnp.abs(x) > 40, 0, x)), "Numbers beyond 40."),
    ("reach: LayerNorm clamped, 5", NORM, row(lambda x: jnp.clip(x, -5, 5)), "Numbers beyond 5."),
    ("reach: images clamped, 5", IMAGES, row(lambda x: jnp.clip(x, -5, 5)), "Pixels beyond 5."),
    ("reach: NaN is zero, 25", STREAM, row(lambda x: jnp.nan_to_num(x + 0 * jnp.log(25 - x))), "Beyond 25."),
    ("mathematics: stream times 1 + 1e-7", STREAM, row(lambda x: x * 1.0000001), "Between two blocks."),
    ("mathematics: one class rectified", LOGITS, row(only((slice(None), 3), jax.nn.relu)), "Class 3."),
    ("mathematics: one token scaled", STREAM, row(only((slice(None), 5), lambda x: x * 1.0001)), "Token 5."),
    ("mathematics: last pixel black", IMAGES, row(only((slice(None), -1, -1), jnp.zeros_like)), "It is not seen."),
    ("mathematics: cubic term of 1e-9", HIDDEN, row(lambda x: x + 1e-9 * x**3), "In one MLP."),
    ("mathematics: features bent", POOLED, row(lambda x: x + 1e-8 * x**2), "By 1e-8."),
    ("mathematics: last norm less a token", LAST_NORM, row(lambda x: x[:, :-1]), "One token is missed."),
    ("mathematics: images a pixel down", IMAGES, row(lambda x: jnp.roll(x, 1, 1)), "Patches are others."),
    ("mathematics: quantised", EMBEDDED, row(lambda x: jnp.round(x * 128) / 128), "To 128ths."),
)
_TABLES: tuple[tuple[tuple[_Row, ...], tuple[Result, ...], tuple[str, ...]], ...] = (
    (_DIFFERENT, DIFFERENT, ()),
    (_IN_FLOAT32, DIFFERENT, ("float32",)),
    (_UNTRACED, NOT_FOLLOWED, ()),
    (_CHANGED, NOT_OFFICIAL, ()),
)


def in_linen(place: str, make: Make) -> Callable[[], Any]:
    return lambda: LinenMixer(at=at(place, make()))


def in_nnx(place: str, make: Make) -> Callable[[], Any]:
    return lambda: NnxMixer(at(place, make()))


CASES = tuple(
    Case(f"{framework} {name}", write(place, make), verdicts, why, causes=causes)
    for framework, write in (("linen", in_linen), ("nnx", in_nnx))
    for rows, verdicts, causes in _TABLES
    for name, place, make, why in rows
)
