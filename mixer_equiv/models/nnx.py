"""The official MLP-Mixer in flax.nnx, with the parameter tree and mathematics of `mixer_equiv.models.flax`.

The state is the official tree under the official names, so that official params go in as they are:

    checkpoint = convert(load("Mixer-B_16.npz"), to="nnx")  # raises for every wrong name and shape
    model = MlpMixer(checkpoint.config, rngs=nnx.Rngs(0))
    nnx.update(model, checkpoint.params)

and come out again with `nnx.to_pure_dict(nnx.state(model, nnx.Param))`. Check them as the first line
does, and hand them over nested, because no call of nnx is strict: `nnx.update` leaves parameters that
are missing as they were, and adds unknown names to the model, flat names too; `nnx.replace_by_pure_dict`
leaves missing ones as they were; `nnx.merge` only counts the arrays, and goes by their order and not by
their names. None of them compares shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mixer_equiv.config import MixerConfig
from mixer_equiv.models.flax.activations import ACTIVATIONS


class MlpBlock(nnx.Module):
    """Linear, activation, Linear back to the input's width, over the last axis."""

    def __init__(self, dim: int, mlp_dim: int, activation: str = "gelu_tanh", *, rngs: nnx.Rngs) -> None:
        self.Dense_0 = nnx.Linear(dim, mlp_dim, rngs=rngs)
        self.Dense_1 = nnx.Linear(mlp_dim, dim, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., dim) to (..., dim)."""
        return self.Dense_1(ACTIVATIONS[self.activation](self.Dense_0(x)))


class MixerBlock(nnx.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch."""

    def __init__(
        self,
        num_tokens: int,
        hidden_dim: int,
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-6,
        *,
        use_fast_variance: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        norm = partial(nnx.LayerNorm, hidden_dim, epsilon=layer_norm_eps, use_fast_variance=use_fast_variance)
        self.LayerNorm_0 = norm(rngs=rngs)
        self.token_mixing = MlpBlock(num_tokens, tokens_mlp_dim, activation, rngs=rngs)
        self.LayerNorm_1 = norm(rngs=rngs)
        self.channel_mixing = MlpBlock(hidden_dim, channels_mlp_dim, activation, rngs=rngs)

    def __call__(self, x: jax.Array, *, taps: bool = False) -> Any:
        """(batch, tokens, hidden) to the same; with `taps`, the pair of streams after each branch."""
        y = jnp.swapaxes(self.LayerNorm_0(x), 1, 2)
        after_tokens = x + jnp.swapaxes(self.token_mixing(y), 1, 2)
        after_channels = after_tokens + self.channel_mixing(self.LayerNorm_1(after_tokens))
        return (after_tokens, after_channels) if taps else after_channels


class MlpMixer(nnx.Module):
    """The whole network (Tolstikhin et al. 2021, figure 1), initialised as the official one.

    The model depends on `config.image_size` only by the number of tokens. Images that the patch size does
    not divide are padded as the official stem pads them. `use_fast_variance` is as in `mixer_equiv.models.flax`.
    """

    def __init__(self, config: MixerConfig, *, use_fast_variance: bool = True, rngs: nnx.Rngs) -> None:
        self.config = config
        self.stem = nnx.Conv(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw, rngs=rngs)
        for i in range(config.num_blocks):
            block = MixerBlock(
                config.num_tokens,
                config.hidden_dim,
                config.tokens_mlp_dim,
                config.channels_mlp_dim,
                config.activation,
                config.layer_norm_eps,
                use_fast_variance=use_fast_variance,
                rngs=rngs,
            )
            setattr(self, f"MixerBlock_{i}", block)
        self.pre_head_layer_norm = nnx.LayerNorm(
            config.hidden_dim, epsilon=config.layer_norm_eps, use_fast_variance=use_fast_variance, rngs=rngs
        )
        if config.num_classes:
            zeros = nnx.initializers.zeros
            self.head = nnx.Linear(config.hidden_dim, config.num_classes, kernel_init=zeros, rngs=rngs)

    def __call__(self, images: jax.Array, *, taps: bool = False) -> Any:
        """(batch, height, width, channels) to logits (batch, classes), or the dict of taps.

        Without classes the pooled features (batch, hidden) are returned. JAX raises `TypeError` for images
        whose number of tokens is not the config's.
        """
        if taps:
            return dict(self._stages(images))
        # Nothing is kept here, so that activations are freed as the stream goes on.
        for _, x in self._stages(images):
            last = x
        return last

    def _stages(self, images: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Name and value of each tap, in the order of computation."""
        x = self.stem(images)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[-1])
        yield "stem", x
        for i in range(self.config.num_blocks):
            name = f"MixerBlock_{i}"
            after_tokens, x = getattr(self, name)(x, taps=True)
            yield f"{name}/token_mixing", after_tokens
            yield f"{name}/channel_mixing", x
        x = self.pre_head_layer_norm(x)
        yield "pre_head_layer_norm", x
        x = jnp.mean(x, axis=1)
        yield "pooled", x
        if self.config.num_classes:
            yield "logits", self.head(x)
