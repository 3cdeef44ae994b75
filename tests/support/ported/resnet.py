"""The bottleneck ResNet (arXiv 1512.03385) of timm, in eval mode, beside one in linen and one in plain torch.

The reference is timm's, whose stem has 64 channels at any size, and which has four stages.
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
from tests.support.ported.rows import batch_norm, conv, dense, layer, same
from tests.support.ported.sides import linen_side, torch_side

STEM, EXPANSION = 64, 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    depths: tuple[int, ...] = (2, 1, 1, 1)
    widths: tuple[int, ...] = (5, 9, 11, 13)
    image: tuple[int, int] = (40, 72)
    classes: int = 15
    batch: int = 2

    def blocks(self) -> Iterator[tuple[int, int, int, int, bool]]:
        """Stage, number in the stage, width, stride, and whether the shortcut is a convolution, of each block."""
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                yield stage, i, width, 2 if stage and not i else 1, not i


SMALL = Sizes()
RESNET_50 = Sizes((3, 4, 6, 3), (64, 128, 256, 512), (224, 224), 1000, 1)


def inputs(sizes: Sizes) -> dict[str, Input]:
    return {"0": Input((sizes.batch, 3, *sizes.image))}


def of_timm(sizes: Sizes) -> Side:
    timm = import_timm().models.resnet
    return torch_side(timm.ResNet(timm.Bottleneck, sizes.depths, num_classes=sizes.classes, channels=sizes.widths))


class LinenBlock(linen.Module):
    width: int
    stride: int
    has_projection: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        shortcut = x
        strides = (self.stride, self.stride)
        x = linen.relu(_norm()(linen.Conv(self.width, (1, 1), use_bias=False)(x)))
        # Not "SAME", which for an even size pads the other edge.
        x = linen.Conv(self.width, (3, 3), strides, padding=1, use_bias=False)(x)
        x = linen.relu(_norm()(x))
        x = _norm()(linen.Conv(EXPANSION * self.width, (1, 1), use_bias=False)(x))
        if self.has_projection:
            project = linen.Conv(EXPANSION * self.width, (1, 1), strides, use_bias=False, name="projection")
            shortcut = _norm("projection_norm")(project(shortcut))
        return linen.relu(x + shortcut)


class LinenResNet(linen.Module):
    """Logits (batch, classes) of images (batch, height, width, 3)."""

    sizes: Sizes

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(STEM, (7, 7), (2, 2), padding=3, use_bias=False, name="stem")(images)
        x = linen.relu(_norm("stem_norm")(x))
        x = linen.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, i, width, stride, has_projection in self.sizes.blocks():
            x = LinenBlock(width, stride, has_projection, name=f"stage{stage}_block{i}")(x)
        return linen.Dense(self.sizes.classes, name="head")(x.mean(axis=(1, 2)))


def _norm(name: str | None = None) -> linen.BatchNorm:
    return linen.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)


class FoldedConv(nn.Module):
    """A convolution whose weight is multiplied by what its BatchNorm divides and multiplies by."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, kernel // 2
        self.kernel = nn.Parameter(torch.randn(width, channels, kernel, kernel))
        self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.register_buffer("running_mean", torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.gain / torch.sqrt(self.running_var + 1e-5)
        kernel, bias = self.kernel * factor[:, None, None, None], self.shift - self.running_mean * factor
        return F.conv2d(x, kernel, bias, self.stride, self.padding)


class FoldedBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, has_projection: bool) -> None:
        super().__init__()
        self.reduce = FoldedConv(channels, width, 1, 1)
        self.middle = FoldedConv(width, width, 3, stride)
        self.expand = FoldedConv(width, EXPANSION * width, 1, 1)
        self.project = FoldedConv(channels, EXPANSION * width, 1, stride) if has_projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.middle(self.reduce(x).clamp(min=0)).clamp(min=0)
        return (self.project(x) + self.expand(inner)).clamp(min=0)


class FoldedResNet(nn.Module):
    """Logits (batch, classes) of images (batch, 3, height, width), without one BatchNorm at run time."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.stem = FoldedConv(3, STEM, 7, 2)
        blocks, channels = [], STEM
        for _, _, width, stride, has_projection in sizes.blocks():
            blocks.append(FoldedBlock(channels, width, stride, has_projection))
            channels = EXPANSION * width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, sizes.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(images).clamp(min=0), 3, 2, 1)
        return self.head(self.blocks(x).mean((2, 3)))


def rows_of_linen(sizes: Sizes) -> Iterator[Row]:
    yield from conv("conv1", "stem", bias=False)
    yield from batch_norm("bn1", "stem_norm")
    for stage, i, _, _, has_projection in sizes.blocks():
        a, b = f"layer{stage + 1}.{i}", f"stage{stage}_block{i}"
        for n in range(3):
            yield from conv(f"{a}.conv{n + 1}", f"{b}/Conv_{n}", bias=False)
            yield from batch_norm(f"{a}.bn{n + 1}", f"{b}/BatchNorm_{n}")
        if has_projection:
            yield from conv(f"{a}.downsample.0", f"{b}/projection", bias=False)
            yield from batch_norm(f"{a}.downsample.1", f"{b}/projection_norm")
    yield from dense("fc", "head")


def rows_of_folded(sizes: Sizes) -> Iterator[Row]:
    yield from _folded("conv1", "bn1", "stem")
    for number, (stage, i, _, _, has_projection) in enumerate(sizes.blocks()):
        a, b = f"layer{stage + 1}.{i}", f"blocks.{number}"
        for n, name in enumerate(("reduce", "middle", "expand"), 1):
            yield from _folded(f"{a}.conv{n}", f"{a}.bn{n}", f"{b}.{name}")
        if has_projection:
            yield from _folded(f"{a}.downsample.0", f"{a}.downsample.1", f"{b}.project")
    yield from layer("fc", "head")


def _folded(conv_name: str, norm_name: str, b: str) -> Iterator[Row]:
    yield same(f"{conv_name}.weight", f"{b}.kernel")
    for theirs, ours in {"weight": "gain", "bias": "shift"}.items():
        yield same(f"{norm_name}.{theirs}", f"{b}.{ours}")
    for name in ("running_mean", "running_var"):
        yield same(f"{norm_name}.{name}", f"{b}.{name}")


RESNET = Family(
    "ResNet",
    {
        "timm": Writing(of_timm),
        "linen": Writing(lambda sizes: linen_side(LinenResNet(sizes), inputs(sizes)), rows_of_linen),
        "folded": Writing(lambda sizes: torch_side(FoldedResNet(sizes)), rows_of_folded),
    },
    inputs,
    SMALL,
    RESNET_50,
)
