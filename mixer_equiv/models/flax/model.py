"""The official MLP-Mixer in Flax linen, parameter tree and mathematics.

Source: google-research/vision_transformer, vit_jax/models_mixer.py.
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
from mixer_equiv.models.flax.formulations import CHANNELS, TOKENS, Dense, Mixing, Stem


class MlpBlock(nn.Module):
    """Dense, activation, Dense back to the input's width, over one axis.

    `mixing` are the operation that stands for a Dense, and its axis; None for Dense itself.
    """

    mlp_dim: int
    activation: str = "gelu_tanh"
    mixing: tuple[Mixing, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """(..., dim) to (..., dim), or another of the last two axes of three."""
        own = -1 if self.mixing is None else self.mixing[1]
        dim, x = x.shape[axis], jnp.moveaxis(x, axis, own)
        x = self._dense(dim, "Dense_1")(ACTIVATIONS[self.activation](self._dense(self.mlp_dim, "Dense_0")(x)))
        return jnp.moveaxis(x, own, axis)

    def _dense(self, features: int, name: str) -> nn.Module:
        if self.mixing is None:
            return nn.Dense(features, name=name)
        return Dense(features, self.mixing, name=name)


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch.

    The stream is (batch, tokens, hidden), or (batch, hidden, tokens) where the `formulation` has it so.
    """

    tokens_mlp_dim: int
    channels_mlp_dim: int
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    formulation: Formulation = DEFAULT_FORMULATION
    use_fast_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, taps: bool = False) -> Any:
        """The stream to the same; with `taps`, the pair of streams after each branch."""
        tokens, channels = (-1, -2) if self.formulation.channels_first else (-2, -1)
        by_tokens = None if self.formulation.tokens == "linear" else TOKENS[self.formulation.tokens]
        by_channels = None if self.formulation.channels == "linear" else CHANNELS[self.formulation.channels]
        norm = partial(_layer_norm, self.layer_norm_eps, channels, self.use_fast_variance)
        y = norm("LayerNorm_0")(x)
        after_tokens = x + MlpBlock(self.tokens_mlp_dim, self.activation, by_tokens, name="token_mixing")(y, tokens)
        y = norm("LayerNorm_1")(after_tokens)
        y = MlpBlock(self.channels_mlp_dim, self.activation, by_channels, name="channel_mixing")(y, channels)
        after_channels = after_tokens + y
        return (after_tokens, after_channels) if taps else after_channels


def _layer_norm(eps: float, axis: int, fast: bool, name: str) -> nn.Module:
    return nn.LayerNorm(epsilon=eps, reduction_axes=axis, feature_axes=axis, use_fast_variance=fast, name=name)


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
        config, formulation = self.config, self.formulation
        first = formulation.channels_first
        seen: dict[str, jax.Array] = {}

        def tap(name: str, x: jax.Array) -> None:
            seen[name] = jnp.swapaxes(x, 1, 2) if first and x.ndim == 3 else x

        if formulation.patch == "conv":
            x = nn.Conv(config.hidden_dim, config.patch_hw, strides=config.patch_hw, name="stem")(images)
            x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[-1])
        else:
            x = Stem(config.hidden_dim, config.patch_hw, formulation.patch, name="stem")(images)
        x = jnp.swapaxes(x, 1, 2) if first else x
        tap("stem", x)
        for i in range(config.num_blocks):
            name = f"MixerBlock_{i}"
            block = MixerBlock(
                config.tokens_mlp_dim,
                config.channels_mlp_dim,
                config.activation,
                config.layer_norm_eps,
                formulation,
                self.use_fast_variance,
                name=name,
            )
            after_tokens, x = block(x, taps=True)
            tap(f"{name}/token_mixing", after_tokens)
            tap(f"{name}/channel_mixing", x)
        channels = -2 if first else -1
        x = _layer_norm(config.layer_norm_eps, channels, self.use_fast_variance, "pre_head_layer_norm")(x)
        tap("pre_head_layer_norm", x)
        x = seen["pooled"] = jnp.mean(x, axis=2 if first else 1)
        if config.num_classes:
            head = nn.Dense(config.num_classes, kernel_init=nn.initializers.zeros, name="head")
            x = seen["logits"] = head(x)
        return seen if taps else x
