"""Sizes of the MLPs over patches that are one class in timm, ResMLP, gMLP and gMixer, and that class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.pair import Input, Row, Side
from tests.support.ported.rows import same
from tests.support.ported.sides import torch_side


@dataclasses.dataclass(frozen=True)
class Sizes:
    """`hidden` is the width inside an MLP, `hidden_tokens` that inside an MLP over tokens."""

    depth: int = 3
    width: int = 26
    hidden: int = 46
    hidden_tokens: int = 34
    patch: tuple[int, int] = (4, 6)
    grid: tuple[int, int] = (3, 5)
    classes: int = 11
    batch: int = 2

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]


SMALL = Sizes()


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"0": Input((sizes.batch, 3, *sizes.image))}


def of_timm(sizes: Sizes, ratio: Any, **layers: Any) -> Side:
    """The class of timm with the layers, by the names of its arguments; see `ratio_of` about the ratio."""
    model = import_timm().models.MlpMixer(
        num_classes=sizes.classes,
        img_size=sizes.image,
        patch_size=sizes.patch,
        num_blocks=sizes.depth,
        embed_dim=sizes.width,
        mlp_ratio=ratio,
        **layers,
    )
    return torch_side(model)


def ratio_of(hidden: int, width: int) -> float:
    """A ratio of which timm, which rounds down, makes these hidden units."""
    return (hidden + 0.5) / width


def stem_as_dense(sizes: Sizes, name: str) -> Iterator[Row]:
    """The convolution of timm's stem as a matrix (row, column and channel of a pixel, width) and a bias."""
    ph, pw = sizes.patch
    axes = {"channels": 3, "ph": ph, "pw": pw}
    columns = "width channels ph pw -> (ph pw channels) width"
    yield Row(("stem.proj.weight",), (f"{name}_kernel",), columns, axes)
    yield same("stem.proj.bias", f"{name}_bias")
