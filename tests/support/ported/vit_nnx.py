"""The Vision Transformer in Flax nnx. One layer makes queries, keys and values, head by head."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Attention(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.LinearGeneral(width, (heads, 3, width // heads), rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x), 3, 0)  # each (batch, tokens, heads, dim)
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / jnp.sqrt(q.shape[-1])
        mixed = jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(scores), v)
        return self.out(mixed.reshape(x.shape))


class Block(nnx.Module):
    def __init__(self, sizes: Any, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(sizes.width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(sizes.width, sizes.heads, rngs)
        self.mlp_norm = nnx.LayerNorm(sizes.width, epsilon=1e-6, rngs=rngs)
        self.up = nnx.Linear(sizes.width, sizes.mlp_dim, rngs=rngs)
        self.down = nnx.Linear(sizes.mlp_dim, sizes.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x))
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class VisionTransformer(nnx.Module):
    """Logits (batch, classes) of images (batch, height, width, 3), for `Sizes` of `vit.py`."""

    def __init__(self, sizes: Any, rngs: nnx.Rngs) -> None:
        tokens = sizes.grid[0] * sizes.grid[1] + 1
        self.patches = nnx.Conv(3, sizes.width, sizes.patch, sizes.patch, padding="VALID", rngs=rngs)
        self.class_token = nnx.Param(jax.random.normal(rngs.params(), (sizes.width,)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (tokens, sizes.width)))
        self.blocks = nnx.List([Block(sizes, rngs) for _ in range(sizes.depth)])
        self.norm = nnx.LayerNorm(sizes.width, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(sizes.width, sizes.classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patches(images)
        patches = patches.reshape(len(images), -1, patches.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (len(images), 1, patches.shape[-1]))
        x = jnp.concatenate([first, patches], axis=1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
