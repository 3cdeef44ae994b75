"""gMLP (arXiv 2105.08050) of timm beside one in linen, with a layer each for the values and for their gates.

The reference is timm's, with eps of 1e-6 before the MLP and 1e-5 before the gate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from flax import linen

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.pair import Family, Row, Side, Writing
from tests.support.ported.rows import conv, dense, norm
from tests.support.ported.sides import linen_side
from tests.support.ported.timm_mlp import SMALL, Sizes, inputs, of_timm, ratio_of

GMLP_TI_16 = dataclasses.replace(
    SMALL, depth=30, width=128, hidden=768, patch=(16, 16), grid=(14, 14), classes=1000, batch=1
)


def of_gmlp(sizes: Sizes) -> Side:
    layers = import_timm().models.mlp_mixer
    ratio = ratio_of(sizes.hidden, sizes.width)
    return of_timm(sizes, ratio, block_layer=layers.SpatialGatingBlock, mlp_layer=layers.GatedMlp)


class Block(linen.Module):
    hidden: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        _, tokens, width = x.shape
        normed = linen.LayerNorm(name="norm")(x)
        value, gate = (
            linen.gelu(linen.Dense(self.hidden // 2, name=name)(normed), approximate=False)
            for name in ("value", "gate")
        )
        gate = linen.LayerNorm(epsilon=1e-5, name="gate_norm")(gate)
        gate = linen.Dense(tokens, name="mix")(gate.swapaxes(1, 2)).swapaxes(1, 2)
        return x + linen.Dense(width, name="out")(value * gate)


class GatedMLP(linen.Module):
    """Logits (batch, classes) of images (batch, height, width, 3)."""

    sizes: Sizes

    @linen.compact
    def __call__(self, images: Any) -> Any:
        sizes = self.sizes
        x = linen.Conv(sizes.width, sizes.patch, sizes.patch, name="patches")(images)
        x = x.reshape(len(x), sizes.tokens, sizes.width)
        for i in range(sizes.depth):
            x = Block(sizes.hidden, name=f"block_{i}")(x)
        return linen.Dense(sizes.classes, name="head")(linen.LayerNorm(name="last")(x).mean(axis=1))


def rows_of_linen(sizes: Sizes) -> Iterator[Row]:
    yield from conv("stem.proj", "patches")
    for i in range(sizes.depth):
        a, b = f"blocks.{i}", f"block_{i}"
        yield from norm(f"{a}.norm", f"{b}/norm")
        kernels, biases = (tuple(f"{b}/{part}/{kind}" for part in ("value", "gate")) for kind in ("kernel", "bias"))
        parts = {"part": 2}
        yield Row((f"{a}.mlp_channels.fc1.weight",), kernels, "(part outs) ins -> part ins outs", parts)
        yield Row((f"{a}.mlp_channels.fc1.bias",), biases, "(part outs) -> part outs", parts)
        yield from norm(f"{a}.mlp_channels.gate.norm", f"{b}/gate_norm")
        yield from dense(f"{a}.mlp_channels.gate.proj", f"{b}/mix")
        yield from dense(f"{a}.mlp_channels.fc2", f"{b}/out")
    yield from norm("norm", "last")
    yield from dense("head", "head")


GMLP = Family(
    "gMLP",
    {
        "timm": Writing(of_gmlp),
        "linen": Writing(lambda sizes: linen_side(GatedMLP(sizes), inputs(sizes)), rows_of_linen),
    },
    inputs,
    SMALL,
    GMLP_TI_16,
)
