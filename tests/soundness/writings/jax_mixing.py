"""Both MLPs in other writings in JAX: (y, kernel, bias, kernel, bias, activation) to the shape of y, (b, s, d)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from tests.soundness.writings.jax_parts import Part


def mixing(product: Part, axis: int) -> Part:
    """An MLP by a product, which mixes the last axis; channels with axis 2, tokens with 1."""

    def mix(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
        return product(act(product(y.swapaxes(axis, -1), k0, b0)), k1, b1).swapaxes(axis, -1)

    return mix


def by_dot_general(x: Array, kernel: Array, bias: Array) -> Array:
    return lax.dot_general(kernel, x, (((0,), (2,)), ((), ()))).transpose(1, 2, 0) + bias


def by_ones(x: Array, kernel: Array, bias: Array) -> Array:
    """The bias is one more row of the kernel."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1) @ jnp.vstack([kernel, bias])


def by_broadcasting(x: Array, kernel: Array, bias: Array) -> Array:
    return (x[..., None] * kernel).sum(-2) + bias


def by_halves(x: Array, kernel: Array, bias: Array) -> Array:
    """What each half of the inputs adds is summed."""
    return sum((a @ b for a, b in zip(jnp.array_split(x, 2, -1), jnp.array_split(kernel, 2), strict=True)), bias)


def by_fori_loop(x: Array, kernel: Array, bias: Array) -> Array:
    """What each input adds is summed in a loop."""
    start = jnp.broadcast_to(bias, (*x.shape[:-1], len(bias)))

    def step(i: Array, total: Array) -> Array:
        return total + lax.dynamic_index_in_dim(x, i, -1) * kernel[i]

    return lax.fori_loop(0, len(kernel), step, start)


def by_vmap(x: Array, kernel: Array, bias: Array) -> Array:
    """Written for one row and one output, mapped over outputs, rows and images."""
    one = jax.vmap(lambda row, column, b: row @ column + b, in_axes=(None, 1, 0))
    return jax.vmap(jax.vmap(one, in_axes=(0, None, None)), in_axes=(0, None, None))(x, kernel, bias)


def by_map(x: Array, kernel: Array, bias: Array) -> Array:
    """`lax.map` over images."""
    return lax.map(lambda image: image @ kernel + bias, x)


def by_conv(x: Array, kernel: Array, bias: Array) -> Array:
    return lax.conv_general_dilated(x, kernel[None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")) + bias


def tokens_from_the_left(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    return k1.T @ act(k0.T @ y + b0[:, None]) + b1[:, None]


def tokens_by_kron(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    b, s, d = y.shape
    eye = jnp.eye(d, dtype=y.dtype)
    wide = act(y.reshape(b, s * d) @ jnp.kron(k0, eye) + jnp.repeat(b0, d))
    return (wide @ jnp.kron(k1, eye) + jnp.repeat(b1, d)).reshape(b, s, d)


def channels_by_units(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    """A scan over hidden units; what they add is summed."""

    def unit(total: Array, weights: tuple[Array, Array, Array]) -> tuple[Array, None]:
        into, bias, out = weights
        return total + act(y @ into + bias)[..., None] * out, None

    return lax.scan(unit, jnp.zeros_like(y) + b1, (k0.T, b0, k1))[0]


def tokens_without_second_bias(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    """The next LayerNorm takes away what this bias adds."""
    return (act(y.swapaxes(1, 2) @ k0 + b0) @ k1).swapaxes(1, 2)


def channels_by_experts(y: Array, k0: Array, b0: Array, k1: Array, b1: Array, act: Part) -> Array:
    """Two halves of the hidden units by `vmap`, summed."""
    kernels = jnp.stack(jnp.split(k0, 2, 1)), b0.reshape(2, -1), jnp.stack(jnp.split(k1, 2, 0))
    return jax.vmap(lambda a, b, c: act(y @ a + b) @ c)(*kernels).sum(0) + b1


# Part and name to the writing that takes its place.
WRITINGS: dict[tuple[str, str], Part] = {
    ("tokens", "dot_general"): mixing(by_dot_general, 1),
    ("tokens", "column of ones"): mixing(by_ones, 1),
    ("tokens", "broadcasting"): mixing(by_broadcasting, 1),
    ("tokens", "vmap"): mixing(by_vmap, 1),
    ("tokens", "convolution"): mixing(by_conv, 1),
    ("tokens", "fori_loop, summed"): mixing(by_fori_loop, 1),
    ("tokens", "matmul from the left"): tokens_from_the_left,
    ("tokens", "Kronecker product"): tokens_by_kron,
    ("tokens", "without the second bias"): tokens_without_second_bias,
    ("channels", "dot_general"): mixing(by_dot_general, 2),
    ("channels", "column of ones"): mixing(by_ones, 2),
    ("channels", "halves, summed"): mixing(by_halves, 2),
    ("channels", "map over images"): mixing(by_map, 2),
    ("channels", "scan over units, summed"): channels_by_units,
    ("channels", "experts, summed"): channels_by_experts,
}
