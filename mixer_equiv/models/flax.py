"""The official MLP-Mixer in Flax linen, parameter tree and mathematics.

Source: google-research/vision_transformer, vit_jax/models_mixer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer_equiv.config import MixerConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "gelu": partial(nn.gelu, approximate=False),
    "relu": nn.relu,
    "silu": nn.silu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class MlpBlock(nn.Module):
    """Dense, activation, Dense back to the input's width, over the last axis."""

    mlp_dim: int
    activation: str = "gelu_tanh"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., dim) to (..., dim)."""
        y = ACTIVATIONS[self.activation](nn.Dense(self.mlp_dim)(x))
        return nn.Dense(x.shape[-1])(y)


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array, *, taps: bool = False) -> Any:
        """(batch, tokens, hidden) to the same; with `taps`, the pair of streams after each branch."""
        y = nn.LayerNorm(epsilon=self.layer_norm_eps)(x)
        y = jnp.swapaxes(y, 1, 2)
        y = MlpBlock(self.tokens_mlp_dim, self.activation, name="token_mixing")(y)
        after_tokens = x + jnp.swapaxes(y, 1, 2)
        y = nn.LayerNorm(epsilon=self.layer_norm_eps)(after_tokens)
        y = MlpBlock(self.channels_mlp_dim, self.activation, name="channel_mixing")(y)
        after_channels = after_tokens + y
        return (after_tokens, after_channels) if taps else after_channels


class MlpMixer(nn.Module):
    """The whole network (Tolstikhin et al. 2021, figure 1).

    `config.image_size` is not used: the number of tokens is that of the images seen at `init`.
    Images that the patch size does not divide are padded as the official stem pads them.
    """

    config: MixerConfig

    @nn.compact
    def __call__(self, images: jax.Array, *, taps: bool = False) -> Any:
        """(batch, height, width, channels) to logits (batch, classes), or the dict of taps."""
        config = self.config
        seen: dict[str, jax.Array] = {}
        x = nn.Conv(config.hidden_dim, config.patch_hw, strides=config.patch_hw, name="stem")(images)
        x = seen["stem"] = x.reshape(x.shape[0], -1, x.shape[-1])
        for i in range(config.num_blocks):
            name = f"MixerBlock_{i}"
            block = MixerBlock(
                config.tokens_mlp_dim, config.channels_mlp_dim, config.activation, config.layer_norm_eps, name=name
            )
            seen[f"{name}/token_mixing"], x = block(x, taps=True)
            seen[f"{name}/channel_mixing"] = x
        x = seen["pre_head_layer_norm"] = nn.LayerNorm(epsilon=config.layer_norm_eps, name="pre_head_layer_norm")(x)
        x = seen["pooled"] = jnp.mean(x, axis=1)
        if config.num_classes:
            head = nn.Dense(config.num_classes, kernel_init=nn.initializers.zeros, name="head")
            x = seen["logits"] = head(x)
        return seen if taps else x
