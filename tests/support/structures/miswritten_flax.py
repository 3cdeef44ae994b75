"""A Mixer in Flax linen as a tutorial writes it, with mistakes put in by the names of `miswritten.MISTAKES`."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from mixer_equiv.config import MixerConfig


class Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.width)(x)))


class MiswrittenFlaxMixer(nn.Module):
    """The official function, but for the `mistakes` among those of `IN_FLAX`."""

    config: MixerConfig
    mistakes: Collection[str] = ()

    def norm(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=True)(x) if "BatchNorm" in self.mistakes else nn.LayerNorm()(x)

    def mixed(self, x: Any) -> Any:
        """A token MLP's branch."""
        swapped = partial(jax.numpy.swapaxes, axis1=1, axis2=2)
        over_tokens = "LayerNorm over tokens" in self.mistakes
        x = nn.LayerNorm()(swapped(x)) if over_tokens else swapped(self.norm(x))
        return swapped(Mlp(self.config.tokens_mlp_dim)(x))

    def mix_tokens(self, x: Any) -> Any:
        for _ in range(1 + ("two token MLPs" in self.mistakes)):
            x = x + self.mixed(x)
        return x

    def mix_channels(self, x: Any) -> Any:
        for _ in range(1 + ("two channel MLPs" in self.mistakes)):
            mlp = Mlp(self.config.channels_mlp_dim)
            x = self.norm(x + mlp(x)) if "channel post-norm" in self.mistakes else x + mlp(self.norm(x))
        return x

    @nn.compact
    def __call__(self, images: Any) -> Any:
        c, mistakes = self.config, self.mistakes
        kernel = tuple(size + 2 for size in c.patch_hw) if "overlapping stem" in mistakes else c.patch_hw
        x = nn.Conv(c.hidden_dim, kernel, c.patch_hw, "SAME")(images)
        if "reshaped" in mistakes:
            x = x.transpose(0, 3, 1, 2)
        x = x.reshape(len(x), c.num_tokens, c.hidden_dim)
        x = nn.LayerNorm()(x) if "LayerNorm after the stem" in mistakes else x
        mixings = (self.mix_tokens, self.mix_channels)
        for _ in range(c.num_blocks):
            for mix in reversed(mixings) if "channels first" in mistakes else mixings:
                x = mix(x)
        x = self.norm(x).mean(axis=2 if "mean over channels" in mistakes else 1)
        x = nn.Dense(c.num_classes)(x)
        return nn.log_softmax(x) if "log_softmax" in mistakes else x


IN_FLAX = (
    *("BatchNorm", "LayerNorm over tokens", "LayerNorm after the stem", "channel post-norm"),
    *("overlapping stem", "reshaped", "two token MLPs", "two channel MLPs", "mean over channels", "log_softmax"),
    "channels first",
)
