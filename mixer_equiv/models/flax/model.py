"""The official MLP-Mixer in Flax linen, parameter tree and mathematics.

Source: google-research/vision_transformer, vit_jax/models_mixer.py. The three classes are the plain model; other
formulations put other classes in the place of its stem and its blocks (`formulations.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer_equiv.config import MixerConfig
from mixer_equiv.formulation import DEFAULT_FORMULATION, Formulation, as_formulation
from mixer_equiv.models.flax.activations import ACTIVATIONS
from mixer_equiv.models.flax.formulations import choose_classes


class MlpBlock(nn.Module):
    """Dense, activation, Dense back to the input's width, over the last axis."""

    mlp_dim: int
    activation: str = "gelu_tanh"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., dim) to (..., dim)."""
        y = nn.Dense(self.mlp_dim)(x)
        y = ACTIVATIONS[self.activation](y)
        return nn.Dense(x.shape[-1])(y)


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    use_fast_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, taps: bool = False) -> Any:
        """(batch, tokens, hidden) to the same; with `taps`, the pair of streams after each branch."""
        norm = partial(nn.LayerNorm, epsilon=self.layer_norm_eps, use_fast_variance=self.use_fast_variance)
        y = jnp.swapaxes(norm()(x), 1, 2)
        y = MlpBlock(self.tokens_mlp_dim, self.activation, name="token_mixing")(y)
        after_tokens = x + jnp.swapaxes(y, 1, 2)
        y = norm()(after_tokens)
        y = MlpBlock(self.channels_mlp_dim, self.activation, name="channel_mixing")(y)
        after_channels = after_tokens + y
        return (after_tokens, after_channels) if taps else after_channels


class MlpMixer(nn.Module):
    """The whole network (Tolstikhin et al. 2021, figure 1).

    Parameters are the same whatever the `formulation`, which says by what operations they are used.
    `config.image_size` is not used: the number of tokens is that of the images seen at `init`.
    Images that the patch size does not divide are padded as the official stem pads them; only patch "conv" takes them.

    The official LayerNorms compute E[x^2] - E[x]^2, which loses digits on rows whose mean is far larger than their
    spread; with `use_fast_variance=False` they take the variance in two passes.
    """

    config: MixerConfig
    formulation: Formulation = DEFAULT_FORMULATION
    use_fast_variance: bool = True

    def __post_init__(self) -> None:
        as_formulation(self.formulation)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, taps: bool = False) -> Any:
        """(batch, height, width, channels) to logits (batch, classes), or the dict of taps."""
        config = self.config
        dims = (config.tokens_mlp_dim, config.channels_mlp_dim)
        conventions = (config.activation, config.layer_norm_eps, self.use_fast_variance)
        stem, block = choose_classes(self.formulation, nn.Conv, MixerBlock)
        x = stem(config.hidden_dim, config.patch_hw, strides=config.patch_hw, name="stem")(images)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[-1])
        seen = {"stem": x}
        for i in range(config.num_blocks):
            after_tokens, x = block(*dims, *conventions, name=f"MixerBlock_{i}")(x, taps=True)
            seen |= {f"MixerBlock_{i}/token_mixing": after_tokens, f"MixerBlock_{i}/channel_mixing": x}
        norm = nn.LayerNorm(config.layer_norm_eps, use_fast_variance=self.use_fast_variance, name="pre_head_layer_norm")
        x = seen["pre_head_layer_norm"] = norm(x)
        x = seen["pooled"] = jnp.mean(x, axis=1)
        if config.num_classes:
            x = seen["logits"] = nn.Dense(config.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)
        return seen if taps else x
