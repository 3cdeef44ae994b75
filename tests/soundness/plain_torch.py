"""The official Mixer in plain torch, and how something is put behind or before one of its modules."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from tests.soundness.cases import CONFIG

Function = Callable[[Tensor], Tensor]


class Mlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, mlp_dim), nn.GELU("tanh"), nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_dim, eps=1e-6) for _ in range(2))
        self.tokens = Mlp(config.num_tokens, config.tokens_mlp_dim)
        self.channels = Mlp(config.hidden_dim, config.channels_mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_channels(self.mix_tokens(x))

    def mix_tokens(self, x: Tensor) -> Tensor:
        return x + self.tokens(self.norm1(x).mT).mT

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """(batch, channels, height, width) to (batch, classes)."""

    def __init__(self, config: MixerConfig = CONFIG, block: Callable[[MixerConfig], nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.head = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    def embed(self, images: Tensor) -> Tensor:
        return self.stem(images).flatten(2).mT

    def classify(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.norm(x)))

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def replace(path: str, make: Callable[[nn.Module], nn.Module], model: nn.Module | None = None) -> nn.Module:
    """A `Mixer`, or `model`, whose module at `path` is what `make` makes of it."""
    model = model or Mixer()
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))
    return model


def after(path: str, function: Function | nn.Module, model: nn.Module | None = None) -> nn.Module:
    """A `Mixer`, or `model`, with `function` of what the module at `path` returns."""
    added = function if isinstance(function, nn.Module) else Apply(function)
    return replace(path, lambda module: nn.Sequential(module, added), model)


def before(path: str, function: Function | nn.Module, model: nn.Module | None = None) -> nn.Module:
    """A `Mixer`, or `model`, with `function` of what the module at `path` is given."""
    added = function if isinstance(function, nn.Module) else Apply(function)
    return replace(path, lambda module: nn.Sequential(added, module), model)


def instead(path: str, function: Function | nn.Module, model: nn.Module | None = None) -> nn.Module:
    """A `Mixer`, or `model`, with `function` in place of the module at `path`."""
    return replace(path, lambda _: function if isinstance(function, nn.Module) else Apply(function), model)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# Modules of the middle block, and what passes behind them.
NORM = "blocks.1.norm1"  # (batch, tokens, hidden), a LayerNorm's output
HIDDEN = "blocks.1.channels.fc1"  # (batch, tokens, channels_mlp), before the activation
ACT = "blocks.1.channels.act"
STREAM = "blocks.1"  # (batch, tokens, hidden)
LOGITS = "head"  # (batch, classes)
IMAGES = "stem"  # with `before`: (batch, channels, height, width)
