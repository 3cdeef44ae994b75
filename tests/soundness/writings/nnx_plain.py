"""The plain Mixer in nnx, whose MLPs and activation are those of `jax_parts.py`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from tests.soundness.cases import CONFIG
from tests.soundness.writings import jax_parts
from tests.soundness.writings.jax_parts import Part
from tests.soundness.writings.official import Affine, Block, Weights, official

DEPTH = CONFIG.num_blocks


def weights() -> Weights:
    """Official weights as JAX arrays, of float64 where x64 is on."""
    return official(new=jnp.asarray)


def linear(affine: Affine) -> nnx.Linear:
    layer = nnx.Linear(*affine.weight.shape, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(affine.weight), nnx.Param(affine.bias)
    return layer


def layer_norm(affine: Affine) -> nnx.LayerNorm:
    layer = nnx.LayerNorm(len(affine.bias), epsilon=1e-6, rngs=nnx.Rngs(0))
    layer.scale, layer.bias = nnx.Param(affine.weight), nnx.Param(affine.bias)
    return layer


def conv(affine: Affine) -> nnx.Conv:
    ph, pw, c, d = affine.weight.shape
    layer = nnx.Conv(c, d, (ph, pw), (ph, pw), rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(affine.weight), nnx.Param(affine.bias)
    return layer


class MixerBlock(nnx.Module):
    """The layers of one block, used by `parts`."""

    def __init__(self, block: Block, parts: dict[str, Part]) -> None:
        self.norm_0, self.norm_1 = layer_norm(block.norm_0), layer_norm(block.norm_1)
        self.tokens_0, self.tokens_1 = linear(block.tokens_0), linear(block.tokens_1)
        self.channels_0, self.channels_1 = linear(block.channels_0), linear(block.channels_1)
        self.tokens, self.channels, self.act = parts["tokens"], parts["channels"], parts["gelu"]

    def __call__(self, x: Array) -> Array:
        t0, t1, c0, c1 = self.tokens_0, self.tokens_1, self.channels_0, self.channels_1
        x = x + self.tokens(self.norm_0(x), t0.kernel[...], t0.bias[...], t1.kernel[...], t1.bias[...], self.act)
        return x + self.channels(self.norm_1(x), c0.kernel[...], c0.bias[...], c1.kernel[...], c1.bias[...], self.act)


class Mixer(nnx.Module):
    """The official function; blocks are in an `nnx.List`."""

    def __init__(self, **parts: Part) -> None:
        w = weights()
        self.stem, self.norm, self.head = conv(w.stem), layer_norm(w.norm), linear(w.head)
        self.blocks = nnx.List([MixerBlock(block, jax_parts.PARTS | parts) for block in w.blocks])

    def embed(self, images: Array) -> Array:
        return self.stem(images).reshape(len(images), -1, CONFIG.hidden_dim)

    def between(self, x: Array) -> Array:
        for block in self.blocks:
            x = block(x)
        return x

    def classify(self, x: Array) -> Any:
        return self.head(self.norm(x).mean(1))

    def __call__(self, images: Array) -> Any:
        return self.classify(self.between(self.embed(images)))
