"""The operations of each `Formulation` in JAX, on the parameters of the official tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import lax

# From x, a kernel (in, out) and a bias (out,) to x with `in` made `out` on one of its three axes.
Mixing = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(..., in) to (..., out)."""
    return x @ kernel + bias


def _matmul(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(in, batch, length) to (out, batch, length): one product for the whole batch."""
    columns = x.reshape(len(x), -1)
    return (kernel.T @ columns + bias[:, None]).reshape(bias.size, *x.shape[1:])


def _pointwise(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(batch, in, length) to (batch, out, length)."""
    return _conv(x, kernel.T[..., None]) + bias[:, None]


def _depthwise(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(batch, channels, in) to (batch, channels, out): the same filters for every channel, written out."""
    batch, channels, _ = x.shape
    filters = jnp.tile(kernel.T[:, None], (channels, 1, 1))
    return _conv(x, filters, groups=channels).reshape(batch, channels, bias.size) + bias


@jax.custom_jvp
def _shared(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(batch, channels, in) to (batch, channels, out): a channel is a picture of one row, and all meet the filters.

    Its derivative is that of the matrix product: XLA's, of a convolution as wide as its input, is another as wide
    over an input padded to twice that, with zeros in all of its products but one in `in`.
    """
    batch, channels, width = x.shape
    return _conv(x.reshape(-1, 1, width), kernel.T[:, None]).reshape(batch, channels, bias.size) + bias


@_shared.defjvp
def _shared_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    return _shared(*primals), jax.jvp(_linear, primals, tangents)[1]


def _conv(x: jax.Array, filters: jax.Array, groups: int = 1) -> jax.Array:
    """A convolution without padding, axes in torch's order."""
    return lax.conv_general_dilated(x, filters, (1,) * (x.ndim - 2), "VALID", feature_group_count=groups)


# Each with the axis that it mixes.
TOKENS: dict[str, tuple[Mixing, int]] = {
    "linear": (_linear, -1),
    "matmul": (_matmul, 0),
    "depthwise_conv": (_depthwise, -1),
    "shared_conv": (_shared, -1),
    "conv1d": (_pointwise, -2),
}
CHANNELS: dict[str, tuple[Mixing, int]] = {"linear": (_linear, -1), "conv1d": (_pointwise, -2)}


class Dense(nn.Module):
    """The parameters of nn.Dense, and its name in the tree, for another operation."""

    features: int
    mixing: tuple[Mixing, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x`, of three axes, with the one that is mixed made `features`."""
        mix, axis = self.mixing
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[axis], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return mix(*promote_dtype(x, kernel, bias))


_FLATTENED = {
    "linear": ("b (h ph) (w pw) c -> b (h w) (ph pw c)", "ph pw c d -> (ph pw c) d"),
    "linear_channels_first": ("b (h ph) (w pw) c -> b (h w) (c ph pw)", "ph pw c d -> (c ph pw) d"),
}


class Stem(nn.Module):
    """The parameters of the official nn.Conv stem, used as a Dense over flattened patches."""

    features: int
    patch: tuple[int, int]
    order: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(batch, height, width, channels) to (batch, tokens, hidden)."""
        ph, pw = self.patch
        shape = (ph, pw, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        of_images, of_kernel = _FLATTENED[self.order]
        return rearrange(images, of_images, ph=ph, pw=pw) @ rearrange(kernel, of_kernel) + bias
