"""ConvNeXt (arXiv 2201.03545) of timm beside one in linen and one in plain torch.

The reference is timm's, with eps of 1e-6 and the exact GELU. It has four stages, and MLPs four times as wide as them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from flax import linen
from torch import Tensor, nn

from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.ported.pair import Family, Input, Row, Side, Writing
from tests.support.ported.rows import conv, dense, layer, norm, same
from tests.support.ported.sides import linen_side, torch_side


@dataclasses.dataclass(frozen=True)
class Sizes:
    depths: tuple[int, ...] = (1, 2, 1, 1)
    widths: tuple[int, ...] = (10, 13, 17, 23)
    image: tuple[int, int] = (32, 64)
    classes: int = 15
    batch: int = 2

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Stage, number in the stage, and width of each block."""
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                yield stage, i, width


SMALL = Sizes()
CONVNEXT_TINY = Sizes((3, 3, 9, 3), (96, 192, 384, 768), (224, 224), 1000, 1)


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"0": Input((sizes.batch, 3, *sizes.image))}


def of_timm(sizes: Sizes) -> Side:
    models = import_timm().models
    return torch_side(models.ConvNeXt(num_classes=sizes.classes, depths=sizes.depths, dims=sizes.widths))


class LinenBlock(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        depthwise = linen.Conv(self.width, (7, 7), padding=3, feature_group_count=self.width)
        hidden = linen.Dense(4 * self.width)(linen.LayerNorm()(depthwise(x)))
        change = linen.Dense(self.width)(linen.gelu(hidden, approximate=False))
        return x + change * self.param("layer_scale", linen.initializers.constant(1e-6), (self.width,))


class LinenConvNeXt(linen.Module):
    """Logits (batch, classes) of images (batch, height, width, 3)."""

    sizes: Sizes

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(self.sizes.widths[0], (4, 4), (4, 4), name="stem")(images)
        x = linen.LayerNorm(name="stem_norm")(x)
        for stage, i, width in self.sizes.blocks():
            if stage and not i:
                x = linen.LayerNorm(name=f"halve{stage}_norm")(x)
                x = linen.Conv(width, (2, 2), (2, 2), name=f"halve{stage}")(x)
            x = LinenBlock(width, name=f"stage{stage}_block{i}")(x)
        x = linen.LayerNorm(name="head_norm")(x.mean(axis=(1, 2)))
        return linen.Dense(self.sizes.classes, name="head")(x)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (batch, channels, height, width), written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


class TorchBlock(nn.Module):
    """Channels stay the second axis: dense layers are convolutions of 1 x 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = ChannelNorm(width)
        self.up, self.down = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.scale = nn.Parameter(torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.scale, self.down(F.gelu(self.up(self.norm(self.depthwise(x))))))


class TorchConvNeXt(nn.Module):
    """Logits (batch, classes) of images (batch, 3, height, width)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        channels = sizes.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 4, 4), ChannelNorm(channels))
        self.halve, blocks = nn.ModuleList(), []
        for stage, i, width in sizes.blocks():
            if stage and not i:
                self.halve.append(nn.Sequential(ChannelNorm(channels), nn.Conv2d(channels, width, 2, 2)))
                channels = width
            blocks.append(TorchBlock(width))
        self.blocks, self.depths = nn.ModuleList(blocks), sizes.depths
        self.norm, self.head = nn.LayerNorm(channels, eps=1e-6), nn.Linear(channels, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        x, blocks = self.stem(images), iter(self.blocks)
        for stage, depth in enumerate(self.depths):
            if stage:
                x = self.halve[stage - 1](x)
            for _ in range(depth):
                x = next(blocks)(x)
        return self.head(self.norm(x.mean((2, 3))))


def rows_of_linen(sizes: Sizes) -> Iterator[Row]:
    yield from conv("stem.0", "stem")
    yield from norm("stem.1", "stem_norm")
    for stage, i, _ in sizes.blocks():
        a, b = f"stages.{stage}.blocks.{i}", f"stage{stage}_block{i}"
        if stage and not i:
            yield from norm(f"stages.{stage}.downsample.0", f"halve{stage}_norm")
            yield from conv(f"stages.{stage}.downsample.1", f"halve{stage}")
        yield from conv(f"{a}.conv_dw", f"{b}/Conv_0")
        yield from norm(f"{a}.norm", f"{b}/LayerNorm_0")
        yield from dense(f"{a}.mlp.fc1", f"{b}/Dense_0")
        yield from dense(f"{a}.mlp.fc2", f"{b}/Dense_1")
        yield same(f"{a}.gamma", f"{b}/layer_scale")
    yield from norm("head.norm", "head_norm")
    yield from dense("head.fc", "head")


def rows_of_torch(sizes: Sizes) -> Iterator[Row]:
    yield from layer("stem.0", "stem.0")
    yield from layer("stem.1", "stem.1")
    for number, (stage, i, _) in enumerate(sizes.blocks()):
        a, b = f"stages.{stage}.blocks.{i}", f"blocks.{number}"
        if stage and not i:
            yield from layer(f"stages.{stage}.downsample.0", f"halve.{stage - 1}.0")
            yield from layer(f"stages.{stage}.downsample.1", f"halve.{stage - 1}.1")
        yield from layer(f"{a}.conv_dw", f"{b}.depthwise")
        yield from layer(f"{a}.norm", f"{b}.norm")
        for theirs, ours in {"mlp.fc1": "up", "mlp.fc2": "down"}.items():
            yield Row((f"{a}.{theirs}.weight",), (f"{b}.{ours}.weight",), "outs ins -> outs ins 1 1")
            yield same(f"{a}.{theirs}.bias", f"{b}.{ours}.bias")
        yield Row((f"{a}.gamma",), (f"{b}.scale",), "width -> width 1 1")
    yield from layer("head.norm", "norm")
    yield from layer("head.fc", "head")


CONVNEXT = Family(
    "ConvNeXt",
    {
        "timm": Writing(of_timm),
        "linen": Writing(lambda sizes: linen_side(LinenConvNeXt(sizes), inputs(sizes)), rows_of_linen),
        "torch": Writing(lambda sizes: torch_side(TorchConvNeXt(sizes)), rows_of_torch),
    },
    inputs,
    SMALL,
    CONVNEXT_TINY,
)
