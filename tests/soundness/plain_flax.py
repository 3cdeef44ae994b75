"""The official Mixer in plain linen and nnx, with places at which a function is applied to what passes.

Both are called with images (batch, height, width, channels). What passes a place is handed to `at` with the
place's name, in which the blocks are numbered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
from flax import nnx

from tests.soundness.cases import CONFIG

Function = Callable[[Any], Any]
At = Callable[[str, Any], Any]

IMAGES = "images"
EMBEDDED = "embedded"  # (batch, tokens, hidden), the stem's output
NORM = "norm1_1"  # (batch, tokens, hidden), a LayerNorm's output in the middle block
HIDDEN = "hidden_1"  # (batch, tokens, channels_mlp), before the activation of the channel MLP
STREAM = "stream_1"  # (batch, tokens, hidden), behind the middle block
LAST_NORM = "last_norm"
POOLED = "pooled"
LOGITS = "logits"


def nowhere(place: str, x: Any) -> Any:
    return x


def at(place: str, function: Function) -> At:
    """`function` at one place."""
    return lambda name, x: function(x) if name == place else x


class LinenMlp(linen.Module):
    mlp_dim: int
    at: Function
    act: Function

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(x.shape[-1])(self.act(self.at(linen.Dense(self.mlp_dim)(x))))


class LinenMixer(linen.Module):
    """`act` and `norm` are called with the number of the block as well, and make its activation and its LayerNorms."""

    at: At = nowhere
    act: Callable[[int], Function] = lambda block: jax.nn.gelu
    norm: Callable[[int], Any] = lambda block: linen.LayerNorm()

    @linen.compact
    def __call__(self, images: Any) -> Any:
        c = CONFIG
        x = linen.Conv(c.hidden_dim, c.patch_hw, c.patch_hw)(self.at(IMAGES, images))
        x = self.at(EMBEDDED, x.reshape(len(x), -1, c.hidden_dim))
        for i in range(c.num_blocks):
            y = self.at(f"norm1_{i}", self.norm(i)(x)).swapaxes(1, 2)
            x = x + LinenMlp(c.tokens_mlp_dim, lambda y: y, self.act(i))(y).swapaxes(1, 2)
            y = self.at(f"norm2_{i}", self.norm(i)(x))
            x = x + LinenMlp(c.channels_mlp_dim, lambda y, i=i: self.at(f"hidden_{i}", y), self.act(i))(y)
            x = self.at(f"stream_{i}", x)
        x = self.at(LAST_NORM, linen.LayerNorm()(x))
        return self.at(LOGITS, linen.Dense(c.num_classes)(self.at(POOLED, x.mean(1))))


class NnxMixer(nnx.Module):
    """As `LinenMixer`, with one activation for all. `at` may be a module with state."""

    def __init__(self, at: At = nowhere, act: Function = jax.nn.gelu, *, rngs: nnx.Rngs | None = None) -> None:
        c, rngs = CONFIG, rngs or nnx.Rngs(0)
        s, d, ds, dc = c.num_tokens, c.hidden_dim, c.tokens_mlp_dim, c.channels_mlp_dim
        self.at, self.act = at, act
        self.stem = nnx.Conv(c.in_channels, d, c.patch_hw, c.patch_hw, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(d, rngs=rngs) for _ in range(2 * c.num_blocks + 1)])
        self.tokens = nnx.List([nnx.Linear(*io, rngs=rngs) for _ in range(c.num_blocks) for io in ((s, ds), (ds, s))])
        self.channels = nnx.List([nnx.Linear(*io, rngs=rngs) for _ in range(c.num_blocks) for io in ((d, dc), (dc, d))])
        self.head = nnx.Linear(d, c.num_classes, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        x = self.stem(self.at(IMAGES, images))
        x = self.at(EMBEDDED, x.reshape(len(x), -1, x.shape[-1]))
        for i in range(CONFIG.num_blocks):
            y = self.at(f"norm1_{i}", self.norms[2 * i](x)).swapaxes(1, 2)
            x = x + self.tokens[2 * i + 1](self.act(self.tokens[2 * i](y))).swapaxes(1, 2)
            y = self.at(f"hidden_{i}", self.channels[2 * i](self.at(f"norm2_{i}", self.norms[2 * i + 1](x))))
            x = self.at(f"stream_{i}", x + self.channels[2 * i + 1](self.act(y)))
        x = self.at(LAST_NORM, self.norms[-1](x))
        return self.at(LOGITS, self.head(self.at(POOLED, x.mean(1))))
