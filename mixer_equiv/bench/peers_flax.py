"""The official Mixer in Flax linen, as google-research has it; a config may change its activation and eps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as linen

from mixer_equiv.config import MixerConfig

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu_tanh": linen.gelu,
    "gelu": partial(linen.gelu, approximate=False),
    "relu": linen.relu,
    "silu": linen.silu,
    "quick_gelu": lambda x: x * linen.sigmoid(1.702 * x),
}


class OfficialMlp(linen.Module):
    width: int
    activation: Callable[[Any], Any] = linen.gelu

    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = self.activation(linen.Dense(features=self.width)(x))
        return linen.Dense(features=x.shape[-1])(hidden)


class MixerBlock(linen.Module):
    tokens_width: int
    channels_width: int
    activation: Callable[[Any], Any] = linen.gelu
    epsilon: float = 1e-6

    @linen.compact
    def __call__(self, x: Any) -> Any:
        normed = linen.LayerNorm(epsilon=self.epsilon)(x).transpose(0, 2, 1)
        x += OfficialMlp(self.tokens_width, self.activation, name="token_mixing")(normed).transpose(0, 2, 1)
        normed = linen.LayerNorm(epsilon=self.epsilon)(x)
        return x + OfficialMlp(self.channels_width, self.activation, name="channel_mixing")(normed)


class OfficialMixer(linen.Module):
    """The calls of flax.linen in google-research/vision_transformer, whose model has neither of the last two fields."""

    patch: tuple[int, int]
    classes: int
    depth: int
    width: int
    tokens_width: int
    channels_width: int
    activation: Callable[[Any], Any] = linen.gelu
    epsilon: float = 1e-6

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(self.width, self.patch, self.patch, name="stem")(images)
        x = x.reshape(len(x), -1, self.width)
        for _ in range(self.depth):
            x = MixerBlock(self.tokens_width, self.channels_width, self.activation, self.epsilon)(x)
        x = linen.LayerNorm(epsilon=self.epsilon, name="pre_head_layer_norm")(x).mean(axis=1)
        if not self.classes:
            return x
        return linen.Dense(self.classes, kernel_init=linen.initializers.zeros, name="head")(x)


def official_mixer(config: MixerConfig) -> OfficialMixer:
    """Make the official model of these sizes, with the config's activation and eps."""
    return OfficialMixer(
        config.patch_hw,
        config.num_classes,
        config.num_blocks,
        config.hidden_dim,
        config.tokens_mlp_dim,
        config.channels_mlp_dim,
        ACTIVATIONS[config.activation],
        config.layer_norm_eps,
    )
