"""The plain Mixer in torch, whose parts are replaced one at a time: `written(embed=..., norm=..., ...)`.

Shapes: images (b, c, h, w), stream (b, s, d). A `Linear`'s weight is (out, in).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv import MixerConfig
from tests.soundness.cases import CONFIG
from tests.soundness.writings.official import Affine, Block, Weights, official

Gelu = Callable[[Tensor], Tensor]

gelu: Gelu = partial(F.gelu, approximate="tanh")


def linear(affine: Affine) -> nn.Linear:
    layer = nn.Linear(*affine.weight.shape)
    layer.weight, layer.bias = nn.Parameter(affine.weight.T.contiguous()), nn.Parameter(affine.bias)
    return layer


def layer_norm(affine: Affine, eps: float = 1e-6) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(affine.bias), eps)
    layer.weight, layer.bias = nn.Parameter(affine.weight), nn.Parameter(affine.bias)
    return layer


def conv(affine: Affine) -> nn.Conv2d:
    ph, pw, c, d = affine.weight.shape
    layer = nn.Conv2d(c, d, (ph, pw), (ph, pw))
    layer.weight, layer.bias = nn.Parameter(affine.weight.permute(3, 2, 0, 1).contiguous()), nn.Parameter(affine.bias)
    return layer


def embed(images: Tensor, stem: nn.Conv2d) -> Tensor:
    return stem(images).flatten(2).mT


def norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, scale.shape, scale, bias, 1e-6)


def mix_tokens(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return second(act(first(y.mT))).mT


def mix_channels(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
    return second(act(first(y)))


def classify(y: Tensor, head: nn.Linear) -> Tensor:
    return head(y.mean(1))


class MixerBlock(nn.Module):
    """The layers of one block; what is done with them is said by `parts`."""

    def __init__(self, block: Block, parts: dict[str, Any]) -> None:
        super().__init__()
        self.norm_0, self.norm_1 = layer_norm(block.norm_0), layer_norm(block.norm_1)
        self.tokens_0, self.tokens_1 = linear(block.tokens_0), linear(block.tokens_1)
        self.channels_0, self.channels_1 = linear(block.channels_0), linear(block.channels_1)
        self.parts = parts

    def tokens(self, x: Tensor) -> Tensor:
        """The branch that mixes tokens, LayerNorm included."""
        y = self.parts["norm"](x, self.norm_0.weight, self.norm_0.bias)
        return self.parts["tokens"](y, self.tokens_0, self.tokens_1, self.parts["gelu"])

    def channels(self, x: Tensor) -> Tensor:
        """The branch that mixes channels, LayerNorm included."""
        y = self.parts["norm"](x, self.norm_1.weight, self.norm_1.bias)
        return self.parts["channels"](y, self.channels_0, self.channels_1, self.parts["gelu"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x)
        return x + self.channels(x)


PARTS = {
    "embed": embed,
    "norm": norm,
    "gelu": gelu,
    "tokens": mix_tokens,
    "channels": mix_channels,
    "classify": classify,
}


class Mixer(nn.Module):
    """The official function by `PARTS`, or what `parts` have in their place."""

    def __init__(self, weights: Weights | None = None, **parts: Any) -> None:
        super().__init__()
        weights = official() if weights is None else weights
        self.config, self.parts = weights.config, PARTS | parts
        self.stem, self.norm, self.head = conv(weights.stem), layer_norm(weights.norm), linear(weights.head)
        self.blocks = nn.ModuleList(MixerBlock(block, self.parts) for block in weights.blocks)

    def embed(self, images: Tensor) -> Tensor:
        return self.parts["embed"](images, self.stem)

    def classify(self, x: Tensor) -> Tensor:
        return self.parts["classify"](self.parts["norm"](x, self.norm.weight, self.norm.bias), self.head)

    def forward(self, images: Tensor) -> Any:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


def written(config: MixerConfig = CONFIG, **parts: Any) -> Callable[[], nn.Module]:
    """A function that makes the Mixer with some parts in other writings."""
    return lambda: Mixer(official(config), **parts)
