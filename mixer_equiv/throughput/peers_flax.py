"""The official Mixer in Flax linen with all its defaults, as google-research/vision_transformer writes it."""

from __future__ import annotations

from typing import Any

import flax.linen as linen

from mixer_equiv.config import MixerConfig


class OfficialMlp(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.gelu(linen.Dense(features=self.width)(x))
        return linen.Dense(features=x.shape[-1])(hidden)


class MixerBlock(linen.Module):
    tokens_width: int
    channels_width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        normed = linen.LayerNorm()(x).transpose(0, 2, 1)
        x += OfficialMlp(self.tokens_width, name="token_mixing")(normed).transpose(0, 2, 1)
        normed = linen.LayerNorm()(x)
        return x + OfficialMlp(self.channels_width, name="channel_mixing")(normed)


class OfficialMixer(linen.Module):
    """flax.linen with all its defaults, as google-research/vision_transformer calls it."""

    patch: tuple[int, int]
    classes: int
    depth: int
    width: int
    tokens_width: int
    channels_width: int

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(self.width, self.patch, self.patch, name="stem")(images)
        x = x.reshape(len(x), -1, self.width)
        for _ in range(self.depth):
            x = MixerBlock(self.tokens_width, self.channels_width)(x)
        x = linen.LayerNorm(name="pre_head_layer_norm")(x).mean(axis=1)
        if not self.classes:
            return x
        return linen.Dense(self.classes, kernel_init=linen.initializers.zeros, name="head")(x)


def official(config: MixerConfig) -> OfficialMixer:
    return OfficialMixer(
        config.patch_hw,
        config.num_classes,
        config.num_blocks,
        config.hidden_dim,
        config.tokens_mlp_dim,
        config.channels_mlp_dim,
    )
