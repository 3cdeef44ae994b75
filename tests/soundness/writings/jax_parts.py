"""The parts of a Mixer in other writings in JAX, for linen and nnx alike.

Shapes: images (b, h, w, c), stream (b, s, d); kernels are (in, out), that of the stem (ph, pw, c, d).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Part = Callable[..., Any]
EPS = 1e-6
gelu: Part = partial(jax.nn.gelu, approximate=True)


def embed(x: Array, kernel: Array, bias: Array) -> Array:
    x = lax.conv_general_dilated(x, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return x.reshape(len(x), -1, x.shape[-1]) + bias


def norm(x: Array, scale: Array, bias: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(x.var(-1, keepdims=True) + EPS) * scale + bias


def dense(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel + bias


def mix_tokens(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    return dense(act(dense(y.swapaxes(1, 2), k0, b0)), k1, b1).swapaxes(1, 2)


def mix_channels(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    return dense(act(dense(y, k0, b0)), k1, b1)


def classify(y: Array, kernel: Array, bias: Array) -> Array:
    return dense(y.mean(1), kernel, bias)


# --- The stem ---


def patches_of(x: Array, kernel: Array) -> Array:
    """(b, h, w, c) to (b, tokens, ph, pw, c)."""
    (ph, pw), (b, h, w, c) = kernel.shape[:2], x.shape
    return x.reshape(b, h // ph, ph, w // pw, pw, c).swapaxes(2, 3).reshape(b, -1, ph, pw, c)


def embed_by_dot_general(x: Array, kernel: Array, bias: Array) -> Array:
    return lax.dot_general(patches_of(x, kernel), kernel, (((2, 3, 4), (0, 1, 2)), ((), ()))) + bias


def embed_channels_first(x: Array, kernel: Array, bias: Array) -> Array:
    x = lax.conv_general_dilated(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), kernel.shape[:2], "VALID")
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2) + bias


def embed_by_conv_patches(x: Array, kernel: Array, bias: Array) -> Array:
    """XLA's own extraction of patches, a convolution with ones and zeros."""
    size = kernel.shape[:2]
    patches = lax.conv_general_dilated_patches(x, size, size, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    flat = kernel.transpose(2, 0, 1, 3).reshape(-1, len(bias))
    return patches.reshape(len(x), -1, len(flat)) @ flat + bias


def embed_by_slices(x: Array, kernel: Array, bias: Array) -> Array:
    """One product for each place in a patch, summed."""
    ph, pw = kernel.shape[:2]
    grid = sum(x[:, i::ph, j::pw] @ kernel[i, j] for i in range(ph) for j in range(pw))
    return jnp.reshape(grid, (len(x), -1, len(bias))) + bias


def embed_by_vmap_over_tokens(x: Array, kernel: Array, bias: Array) -> Array:
    """`dynamic_slice` cuts a patch, for all tokens by `vmap`."""
    ph, pw, c, _ = kernel.shape
    rows, columns = x.shape[1] // ph, x.shape[2] // pw

    def token(n: Array) -> Array:
        patch = lax.dynamic_slice(x, (0, n // columns * ph, n % columns * pw, 0), (len(x), ph, pw, c))
        return jnp.tensordot(patch, kernel, 3) + bias

    return jax.vmap(token, out_axes=1)(jnp.arange(rows * columns))


def embed_by_take(x: Array, kernel: Array, bias: Array) -> Array:
    ph, pw, c, d = kernel.shape
    h, w = x.shape[1:3]
    places = np.arange(h * w * c).reshape(h // ph, ph, w // pw, pw, c).swapaxes(1, 2).reshape(-1, ph * pw * c)
    return jnp.take(x.reshape(len(x), -1), places, axis=1) @ kernel.reshape(-1, d) + bias


# --- LayerNorm ---


def norm_by_moments(x: Array, scale: Array, bias: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.square(x).mean(-1, keepdims=True) - mean**2)
    return (x - mean) * (lax.rsqrt(variance + EPS) * scale) + bias


def norm_by_standardize(x: Array, scale: Array, bias: Array) -> Array:
    return jax.nn.standardize(x, axis=-1, epsilon=EPS) * scale + bias


def norm_by_vmap(x: Array, scale: Array, bias: Array) -> Array:
    """Written for one token."""

    def one(token: Array) -> Array:
        centred = token - token.mean()
        return centred / jnp.sqrt(jnp.vdot(centred, centred) / token.size + EPS) * scale + bias

    return jax.vmap(jax.vmap(one))(x)


def norm_by_norm(x: Array, scale: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    length = jnp.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / jnp.sqrt(length**2 / x.shape[-1] + EPS) * scale + bias


def norm_by_einsum(x: Array, scale: Array, bias: Array) -> Array:
    centred = x - jnp.einsum("bsd->bs", x)[..., None] / x.shape[-1]
    variance = jnp.einsum("bsd,bsd->bs", centred, centred) / x.shape[-1]
    return jnp.einsum("bsd,bs,d->bsd", centred, 1 / jnp.sqrt(variance + EPS), scale) + bias


def norm_by_scan(x: Array, scale: Array, bias: Array) -> Array:
    """Welford's updates over channels."""

    def step(state: tuple[Array, Array, Array], channel: Array) -> tuple[tuple[Array, Array, Array], None]:
        count, mean, squares = state
        delta = channel - mean
        mean = mean + delta / (count + 1)
        return (count + 1, mean, squares + delta * (channel - mean)), None

    zeros = jnp.zeros_like(x[..., 0])
    (_, mean, squares), _ = lax.scan(step, (jnp.zeros((), x.dtype), zeros, zeros), jnp.moveaxis(x, -1, 0))
    return (x - mean[..., None]) / jnp.sqrt(squares[..., None] / x.shape[-1] + EPS) * scale + bias


# --- GELU ---

ROOT, CUBIC = float(np.sqrt(2 / np.pi)), 0.044715


def gelu_by_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + jnp.tanh(ROOT * (x + CUBIC * x**3)))


def gelu_by_logistic(x: Array) -> Array:
    return x * lax.logistic(2 * ROOT * x * (1 + CUBIC * lax.square(x)))


def gelu_by_exp(x: Array) -> Array:
    return x / (1 + jnp.exp(-2 * ROOT * (x + CUBIC * x * x * x)))


@jax.custom_jvp
def gelu_custom_jvp(x: Array) -> Array:
    return gelu_by_tanh(x)


@gelu_custom_jvp.defjvp
def _gelu_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return jax.jvp(gelu_by_logistic, primals, tangents)


@jax.custom_vjp
def gelu_custom_vjp(x: Array) -> Array:
    return gelu_by_tanh(x)


gelu_custom_vjp.defvjp(lambda x: (gelu_by_tanh(x), x), lambda x, gradient: jax.vjp(gelu_by_logistic, x)[1](gradient))


def gelu_by_cond(x: Array) -> Array:
    """Two writings of one GELU, by the sign of a mean."""
    return lax.cond(x.mean() > 0, gelu_by_tanh, gelu_by_logistic, x)


def gelu_by_select(x: Array) -> Array:
    small = jnp.exp(-2 * jnp.abs(ROOT * (x + CUBIC * x**3)))
    return jnp.where(x >= 0, x / (1 + small), x * small / (1 + small))


# --- Mean and head ---


def classify_by_scan(y: Array, kernel: Array, bias: Array) -> Array:
    """Tokens are added in a scan."""
    total, _ = lax.scan(lambda carry, token: (carry + token, None), jnp.zeros_like(y[:, 0]), y.swapaxes(0, 1))
    return dense(total / y.shape[1], kernel, bias)


def classify_head_first(y: Array, kernel: Array, bias: Array) -> Array:
    return dense(y, kernel, bias).mean(1)


def classify_by_einsum(y: Array, kernel: Array, bias: Array) -> Array:
    share = jnp.full(y.shape[1], 1 / y.shape[1], y.dtype)
    return jnp.einsum("bsd,s,dk->bk", y, share, kernel) + bias


def classify_by_segments(y: Array, kernel: Array, bias: Array) -> Array:
    rows = jnp.repeat(jnp.arange(len(y)), y.shape[1])
    total = jax.ops.segment_sum(y.reshape(-1, y.shape[-1]), rows, num_segments=len(y))
    return dense(total / y.shape[1], kernel, bias)


def classify_by_average(y: Array, kernel: Array, bias: Array) -> Array:
    return dense(jnp.average(y, axis=1, weights=jnp.ones(y.shape[1], y.dtype)), kernel, bias)


def classify_by_cumsum(y: Array, kernel: Array, bias: Array) -> Array:
    return dense(jnp.cumsum(y, 1)[:, -1] / y.shape[1], kernel, bias)


def classify_by_window(y: Array, kernel: Array, bias: Array) -> Array:
    total = lax.reduce_window(y, 0.0, lax.add, (1, y.shape[1], 1), (1, 1, 1), "VALID")
    return dense(total[:, 0] / y.shape[1], kernel, bias)


def classify_by_reduce(y: Array, kernel: Array, bias: Array) -> Array:
    """What the sum begins with is no constant, so that it is JAX's reduction by any function."""
    total = lax.reduce(y, jnp.zeros((), y.dtype), lax.add, (1,))
    return dense(total / y.shape[1], kernel, bias)


# --- GELUs of rounded constants ---


def gelu_of_eight_digits(x: Array) -> Array:
    return 0.5 * x * (1 + jnp.tanh(0.79788456 * x * (1 + CUBIC * x * x)))


def gelu_by_rounded_erf(x: Array) -> Array:
    return 0.5 * x * (1 + lax.erf(x * 0.70710678))


PARTS: dict[str, Part] = {
    "embed": embed,
    "norm": norm,
    "gelu": gelu,
    "tokens": mix_tokens,
    "channels": mix_channels,
    "classify": classify,
}
# Part and name to the writing that takes its place; `jax_mixing.py` has those of MLPs.
WRITINGS: dict[tuple[str, str], Part] = {
    ("embed", "dot_general"): embed_by_dot_general,
    ("embed", "channels first"): embed_channels_first,
    ("embed", "conv_general_dilated_patches"): embed_by_conv_patches,
    ("embed", "strided slices, summed"): embed_by_slices,
    ("embed", "vmap over tokens"): embed_by_vmap_over_tokens,
    ("embed", "take"): embed_by_take,
    ("norm", "moments"): norm_by_moments,
    ("norm", "standardize"): norm_by_standardize,
    ("norm", "vmap over tokens"): norm_by_vmap,
    ("norm", "vector norm"): norm_by_norm,
    ("norm", "einsum"): norm_by_einsum,
    ("norm", "scan over channels"): norm_by_scan,
    ("gelu", "tanh"): gelu_by_tanh,
    ("gelu", "logistic"): gelu_by_logistic,
    ("gelu", "exp"): gelu_by_exp,
    ("gelu", "custom_jvp"): gelu_custom_jvp,
    ("gelu", "custom_vjp"): gelu_custom_vjp,
    ("gelu", "jit"): jax.jit(gelu_by_tanh),
    ("gelu", "remat"): jax.checkpoint(gelu_by_tanh),
    ("gelu", "vectorize"): jnp.vectorize(gelu_by_tanh),
    ("gelu", "by sign"): gelu_by_select,
    ("gelu", "cond of two equal ones"): gelu_by_cond,
    ("classify", "scan"): classify_by_scan,
    ("classify", "head first"): classify_head_first,
    ("classify", "einsum"): classify_by_einsum,
    ("classify", "segment_sum"): classify_by_segments,
    ("classify", "average"): classify_by_average,
    ("classify", "cumsum"): classify_by_cumsum,
    ("classify", "reduce_window"): classify_by_window,
    ("classify", "reduce"): classify_by_reduce,
}
ROUNDED: dict[tuple[str, str], Part] = {
    ("gelu", "GELU of 0.79788456"): gelu_of_eight_digits,
    ("gelu", "GELU by erf of 0.70710678"): gelu_by_rounded_erf,
}
