"""ResMLP (arXiv 2105.03404) of timm beside one in linen, whose affine layers and layer scales are bare arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import linen

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.pair import Family, Row, Side, Writing
from tests.support.ported.rows import conv, dense, same
from tests.support.ported.sides import linen_side
from tests.support.ported.timm_mlp import SMALL, Sizes, inputs, of_timm, ratio_of

RESMLP_12 = dataclasses.replace(
    SMALL, depth=12, width=384, hidden=1536, patch=(16, 16), grid=(14, 14), classes=1000, batch=1
)


def of_resmlp(sizes: Sizes) -> Side:
    layers = import_timm().models.mlp_mixer
    ratio = ratio_of(sizes.hidden, sizes.width)
    return of_timm(sizes, ratio, block_layer=layers.ResBlock, norm_layer=layers.Affine)


class Affine(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        scale = self.param("scale", linen.initializers.ones, (x.shape[-1],))
        return scale * x + self.param("shift", linen.initializers.zeros, (x.shape[-1],))


class Block(linen.Module):
    hidden: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        _, tokens, width = x.shape
        kernel = self.param("mix", linen.initializers.lecun_normal(), (tokens, tokens))
        mixed = jnp.einsum("bnw,mn->bmw", Affine(name="before_mix")(x), kernel)
        mixed = mixed + self.param("mix_bias", linen.initializers.zeros, (tokens, 1))
        x = x + mixed * self.param("mix_scale", linen.initializers.constant(0.1), (width,))
        hidden = linen.Dense(self.hidden, name="up")(Affine(name="before_mlp")(x))
        change = linen.Dense(width, name="down")(linen.gelu(hidden, approximate=False))
        return x + change * self.param("mlp_scale", linen.initializers.constant(0.1), (width,))


class ResMLP(linen.Module):
    """Logits (batch, classes) of images (batch, height, width, 3)."""

    sizes: Sizes

    @linen.compact
    def __call__(self, images: Any) -> Any:
        sizes = self.sizes
        x = linen.Conv(sizes.width, sizes.patch, sizes.patch, name="patches")(images)
        x = x.reshape(len(x), sizes.tokens, sizes.width)
        for i in range(sizes.depth):
            x = Block(sizes.hidden, name=f"block_{i}")(x)
        return linen.Dense(sizes.classes, name="head")(Affine(name="last")(x).mean(axis=1))


def rows_of_linen(sizes: Sizes) -> Iterator[Row]:
    yield from conv("stem.proj", "patches")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"block_{i}"
        yield from _affine(f"{a}.norm1", f"{b}/before_mix")
        yield same(f"{a}.linear_tokens.weight", f"{b}/mix")
        yield Row((f"{a}.linear_tokens.bias",), (f"{b}/mix_bias",), "tokens -> tokens 1")
        yield same(f"{a}.ls1", f"{b}/mix_scale")
        yield from _affine(f"{a}.norm2", f"{b}/before_mlp")
        yield from dense(f"{a}.mlp_channels.fc1", f"{b}/up")
        yield from dense(f"{a}.mlp_channels.fc2", f"{b}/down")
        yield same(f"{a}.ls2", f"{b}/mlp_scale")
    yield from _affine("norm", "last")
    yield from dense("head", "head")


def _affine(a: str, b: str) -> Iterator[Row]:
    yield Row((f"{a}.alpha",), (f"{b}/scale",), "1 1 width -> width")
    yield Row((f"{a}.beta",), (f"{b}/shift",), "1 1 width -> width")


RESMLP = Family(
    "ResMLP",
    {
        "timm": Writing(of_resmlp),
        "linen": Writing(lambda sizes: linen_side(ResMLP(sizes), inputs(sizes)), rows_of_linen),
    },
    inputs,
    SMALL,
    RESMLP_12,
)
