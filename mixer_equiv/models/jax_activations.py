"""The activations in JAX, for linen and nnx alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

# gelu_tanh(x) is x * sigmoid(2 * u), where u is ROOT * (x + CUBIC * x**3) (Hendrycks and Gimpel 2016, section 2).
ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


@jax.custom_jvp
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The same as `jax.nn.gelu(x)`, whose derivative keeps `x` alone until the backward pass.

    The derivative is written with a sigmoid. XLA would find tanh and the polynomial of the forward pass in its own
    derivative again, and keep both rather than compute them twice: two arrays more for each activation.
    """
    return jax.nn.gelu(x, approximate=True)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, Any]:
    (x,), (tangent,) = primals, tangents
    gate = jax.nn.sigmoid(2 * ROOT * (x + CUBIC * x**3))
    slope = 2 * ROOT * (1 + 3 * CUBIC * x**2)
    return gelu_tanh(x), tangent * (gate + x * gate * (1 - gate) * slope)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
