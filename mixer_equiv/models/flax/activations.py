"""The activations of a `MixerConfig` in JAX, shared by the linen and the nnx model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# gelu_tanh(x) is x * sigmoid(2 * u), where u is ROOT * (x + CUBIC * x**3) (Hendrycks and Gimpel 2016, section 2).
ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The values of `jax.nn.gelu(x)`, with a derivative that keeps only `x` until the backward pass.

    The derivative is written with a sigmoid. Its default form contains the tanh and the polynomial of the forward pass,
    which XLA would keep rather than compute twice: two more arrays for each activation.
    """
    return jax.nn.gelu(x, approximate=True)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, Any]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # half precision loses its digits in 1 - gate
    gate = jax.nn.sigmoid(2 * ROOT * (wide + CUBIC * wide**3))
    slope = gate + wide * gate * (1 - gate) * 2 * ROOT * (1 + 3 * CUBIC * wide**2)
    return gelu_tanh(x), tangent * slope.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
