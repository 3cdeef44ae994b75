"""The Vision Transformer in Flax linen, with the names and layers of google-research/vision_transformer.

Its GELU is the exact one, as in timm; the official one is the approximation by tanh.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen


class AddPositionEmbs(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", linen.initializers.normal(0.02), (1, *x.shape[1:]))


class MlpBlock(linen.Module):
    mlp_dim: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.gelu(linen.Dense(self.mlp_dim)(x), approximate=False)
        return linen.Dense(x.shape[-1])(hidden)


class EncoderBlock(linen.Module):
    num_heads: int
    mlp_dim: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = x + linen.MultiHeadDotProductAttention(num_heads=self.num_heads)(linen.LayerNorm()(x))
        return x + MlpBlock(self.mlp_dim)(linen.LayerNorm()(x))


class Encoder(linen.Module):
    sizes: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = AddPositionEmbs(name="posembed_input")(x)
        for i in range(self.sizes.depth):
            x = EncoderBlock(self.sizes.heads, self.sizes.mlp_dim, name=f"encoderblock_{i}")(x)
        return linen.LayerNorm(name="encoder_norm")(x)


class VisionTransformer(linen.Module):
    """Logits (batch, classes) of images (batch, height, width, 3), for `Sizes` of `vit.py`."""

    sizes: Any

    @linen.compact
    def __call__(self, images: Any) -> Any:
        sizes = self.sizes
        x = linen.Conv(sizes.width, sizes.patch, sizes.patch, padding="VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, sizes.width)
        cls = self.param("cls", linen.initializers.zeros, (1, 1, sizes.width))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(sizes, name="Transformer")(x)
        return linen.Dense(sizes.classes, name="head")(x[:, 0])
