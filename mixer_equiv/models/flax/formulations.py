"""The operations of each `Formulation` in JAX, on the parameters of the official tree.

Each class stands in the place of a plain one, with its parameters, names and shapes, so that the model around it stays
as it is. Must not know the classes of `model.py`. Start reading at `choose_classes`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import lax

from mixer_equiv.formulation import Formulation
from mixer_equiv.models.flax.activations import ACTIVATIONS

# Makes a module, given the arguments of the plain class.
ModuleClass = Callable[..., Any]


def choose_classes(formulation: Formulation, stem: ModuleClass, block: ModuleClass) -> tuple[ModuleClass, ModuleClass]:
    """The plain classes `stem` and `block`, or what stands in their place in this formulation."""
    if formulation.patch != "conv":
        stem = partial(LinearStem, order=formulation.patch)
    if (formulation.tokens, formulation.channels) != ("linear", "linear"):
        block = partial(FormulationBlock, formulation=formulation)
    return stem, block


class Mixing(NamedTuple):
    """An operation in place of a Dense, and the axis that it mixes.

    `operation` maps an input (of three axes), a kernel (in, out) and a bias (out,) to the input with `in` made `out`.
    """

    operation: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    axis: int


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
    """(batch, channels, in) to (batch, channels, out): the same filters, repeated for every channel."""
    batch, channels, _ = x.shape
    filters = jnp.tile(kernel.T[:, None], (channels, 1, 1))
    return _conv(x, filters, groups=channels).reshape(batch, channels, bias.size) + bias


@jax.custom_jvp
def _shared(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """(batch, channels, in) to (batch, channels, out): each channel is an image of one row, under the same filters.

    Its derivative is written as that of the matrix product. XLA would differentiate a convolution as wide as its input
    into one as wide over an input padded to twice that, where all products but one in `in` are with zeros.
    """
    batch, channels, width = x.shape
    return _conv(x.reshape(-1, 1, width), kernel.T[:, None]).reshape(batch, channels, bias.size) + bias


@_shared.defjvp
def _shared_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    return _shared(*primals), jax.jvp(_linear, primals, tangents)[1]


def _conv(x: jax.Array, filters: jax.Array, groups: int = 1) -> jax.Array:
    """A convolution without padding, axes in torch's order."""
    return lax.conv_general_dilated(x, filters, (1,) * (x.ndim - 2), "VALID", feature_group_count=groups)


LINEAR = Mixing(_linear, -1)  # nn.Dense itself
TOKEN_MIXINGS: dict[str, Mixing] = {
    "linear": LINEAR,
    "matmul": Mixing(_matmul, 0),
    "depthwise_conv": Mixing(_depthwise, -1),
    "shared_conv": Mixing(_shared, -1),
    "conv1d": Mixing(_pointwise, -2),
}
CHANNEL_MIXINGS: dict[str, Mixing] = {"linear": LINEAR, "conv1d": Mixing(_pointwise, -2)}


class FormulationBlock(nn.Module):
    """A MixerBlock by the mixings of a formulation, computed on (batch, hidden, tokens) if that is the stream's order.

    It takes and returns (batch, tokens, hidden) in either case. XLA drops the two transposes between two blocks.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    activation: str
    layer_norm_eps: float
    use_fast_variance: bool
    formulation: Formulation

    @nn.compact
    def __call__(self, x: jax.Array, *, taps: bool = False) -> Any:
        """(batch, tokens, hidden) to the same; with `taps`, the pair of streams after each branch."""
        formulation, first = self.formulation, self.formulation.channels_first
        tokens, channels = (-1, -2) if first else (-2, -1)
        norm = partial(
            nn.LayerNorm,
            epsilon=self.layer_norm_eps,
            reduction_axes=channels,
            feature_axes=channels,
            use_fast_variance=self.use_fast_variance,
        )
        x = jnp.swapaxes(x, 1, 2) if first else x
        mixing = TOKEN_MIXINGS[formulation.tokens]
        y = FormulationMlp(self.tokens_mlp_dim, self.activation, mixing, name="token_mixing")(norm()(x), tokens)
        after_tokens = x + y
        mixing = CHANNEL_MIXINGS[formulation.channels]
        y = norm()(after_tokens)
        y = FormulationMlp(self.channels_mlp_dim, self.activation, mixing, name="channel_mixing")(y, channels)
        after_channels = after_tokens + y
        if first:
            after_tokens, after_channels = (jnp.swapaxes(x, 1, 2) for x in (after_tokens, after_channels))
        return (after_tokens, after_channels) if taps else after_channels


class FormulationMlp(nn.Module):
    """An MlpBlock by a mixing, over one of the last two axes."""

    mlp_dim: int
    activation: str
    mixing: Mixing

    @nn.compact
    def __call__(self, x: jax.Array, axis: int) -> jax.Array:
        """`x`, of three axes, to the same shape."""
        dim, own = x.shape[axis], self.mixing.axis
        dense = nn.Dense if self.mixing == LINEAR else partial(MixingDense, mixing=self.mixing)
        y = dense(self.mlp_dim, name="Dense_0")(jnp.moveaxis(x, axis, own))
        y = dense(dim, name="Dense_1")(ACTIVATIONS[self.activation](y))
        return jnp.moveaxis(y, own, axis)


class MixingDense(nn.Module):
    """An nn.Dense computed by the operation of a `Mixing`."""

    features: int
    mixing: Mixing

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x`, of three axes, with `features` numbers on the axis that is mixed."""
        shape = (x.shape[self.mixing.axis], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return self.mixing.operation(*promote_dtype(x, kernel, bias))


# einops patterns by the order of a flattened patch: of the images, and of the stem's kernel as that of a Dense.
PATCH_PATTERNS = {
    "linear": ("b (h ph) (w pw) c -> b h w (ph pw c)", "ph pw c d -> (ph pw c) d"),
    "linear_channels_first": ("b (h ph) (w pw) c -> b h w (c ph pw)", "ph pw c d -> (c ph pw) d"),
}


class LinearStem(nn.Module):
    """A convolution of patches computed as a product over flattened patches; `order` is one of `PATCH_PATTERNS`."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int]
    order: str

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """(batch, height, width, channels) to (batch, rows, columns, hidden)."""
        ph, pw = self.strides
        shape = (*self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        images_pattern, kernel_pattern = PATCH_PATTERNS[self.order]
        return rearrange(images, images_pattern, ph=ph, pw=pw) @ rearrange(kernel, kernel_pattern) + bias
