"""Mixers whose blocks are put together otherwise, share weights, or have another mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.soundness.cases import CONFIG, DIFFERENT, NOT_OFFICIAL, Case
from tests.soundness.plain_torch import Block, Mixer, replace


class Residual(Block):
    """The stream is scaled where the channel branch is added."""

    def __init__(self, scale: float, config: object) -> None:
        super().__init__(CONFIG)
        self.scale = scale

    def mix_channels(self, x: Tensor) -> Tensor:
        return self.scale * x + self.channels(self.norm2(x))


class Parallel(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.tokens(self.norm1(x).mT).mT + self.channels(self.norm2(x))


class ChannelsFirst(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix_tokens(self.mix_channels(x))


class NormalisedStream(Block):
    def mix_tokens(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        return x + self.tokens(x.mT).mT


class Viewed(Block):
    """The token branch comes back by a view."""

    def mix_tokens(self, x: Tensor) -> Tensor:
        return x + self.tokens(self.norm1(x).mT).reshape(x.shape)


class OtherTokens(Block):
    """The channel branch of a token is added to the next one."""

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.channels(self.norm2(x)).roll(1, 1)


class TwiceMixed(Block):
    """Adds a little of a second token mixing."""

    def mix_tokens(self, x: Tensor) -> Tensor:
        x = super().mix_tokens(x)
        return x + 1e-9 * self.tokens(self.norm1(x).mT).mT


class BiasOfToken(Block):
    """Token 0 of the channel branch has its bias twice."""

    def mix_channels(self, x: Tensor) -> Tensor:
        mixed = self.channels(self.norm2(x))
        return x + torch.cat([mixed[:, :1] + self.channels.fc2.bias, mixed[:, 1:]], 1)


class Adapter(nn.Module):
    """An adapter of low rank beside a layer, with something between its two layers."""

    def __init__(self, layer: nn.Module, between: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        outputs, inputs = layer.weight.shape
        self.added = nn.Sequential(nn.Linear(inputs, 2, bias=False), between, nn.Linear(2, outputs, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.added(x)


class AdapterBeforeNorm(Block):
    """An adapter of low rank takes the stream, and its layer the LayerNorm's result."""

    def __init__(self, config: object) -> None:
        super().__init__(CONFIG)
        self.down = nn.Linear(CONFIG.hidden_dim, 2, bias=False)
        self.up = nn.Linear(2, CONFIG.channels_mlp_dim, bias=False)

    def mix_channels(self, x: Tensor) -> Tensor:
        first, second = self.channels.fc1, self.channels.fc2
        return x + second(self.channels.act(first(self.norm2(x)) + self.up(self.down(x))))


class Shared(Block):
    """The second LayerNorm is the first."""

    def mix_channels(self, x: Tensor) -> Tensor:
        return x + self.channels(self.norm1(x))


def with_block(number: int, block: nn.Module, config: object = CONFIG) -> nn.Module:
    model = Mixer(config)
    model.blocks[number] = block
    return model


def sharing(first: str, second: str) -> nn.Module:
    """The second module is the first."""
    model = Mixer()
    return replace(second, lambda _: model.get_submodule(first), model)


def one_bias_of_two() -> nn.Module:
    """A bias is the head of another array of the model."""
    model = Mixer()
    model.blocks[1].norm2.bias = model.blocks[0].norm1.bias
    return model


class EvaluatedWrongly(Mixer):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if self.training else images.relu())


class TrainedWrongly(Mixer):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.relu() if self.training else images)


_SWAPPED = ("sublayers_swapped",)
# Name, what makes the model, why it is wrong.
_BLOCKS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    (
        "residual times 1.0000001",
        lambda: with_block(1, Residual(1.0000001, CONFIG)),
        "In one block's channel branch.",
    ),
    ("a second mixing by 1e-9", lambda: Mixer(block=TwiceMixed), "Added to the stream."),
    ("parallel branches", lambda: with_block(1, Parallel(CONFIG)), "Both read the same stream."),
    ("normalised stream", lambda: with_block(1, NormalisedStream(CONFIG)), "The branch is added to it."),
    ("a view for a transpose", lambda: with_block(0, Viewed(CONFIG)), "In one block."),
    ("an activation in an adapter", lambda: replace("head", lambda m: Adapter(m, nn.GELU())), "At the head."),
    (
        "an activation in an adapter of a block",
        lambda: replace("blocks.1.channels.fc1", lambda m: Adapter(m, nn.ReLU())),
        "In one MLP.",
    ),
    ("an adapter of the stream", lambda: with_block(1, AdapterBeforeNorm(CONFIG)), "Its layer takes the LayerNorm's."),
    ("branch of the token before", lambda: with_block(2, OtherTokens(CONFIG)), "In one block."),
    ("a bias twice on token 0", lambda: with_block(1, BiasOfToken(CONFIG)), "In one block."),
)
# Blocks whose MLPs are put together otherwise, each with the causes that may be named.
_SUBLAYERS: tuple[tuple[str, Callable[[], nn.Module], str, tuple[str, ...]], ...] = (
    ("channels before tokens", lambda: Mixer(block=ChannelsFirst), "In all blocks.", _SWAPPED),
    ("channels before tokens, first", lambda: with_block(0, ChannelsFirst(CONFIG)), "In the first block.", _SWAPPED),
    ("channels before tokens, middle", lambda: with_block(1, ChannelsFirst(CONFIG)), "In the middle block.", _SWAPPED),
    ("channels before tokens, last", lambda: with_block(2, ChannelsFirst(CONFIG)), "In the last block.", _SWAPPED),
    (
        "channels before tokens, erf",
        lambda: replace("blocks.0.channels.act", lambda _: nn.GELU(), Mixer(block=ChannelsFirst)),
        "With the erf GELU in one MLP.",
        (*_SWAPPED, "activation"),
    ),
)
_CONSTRAINED: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("one LayerNorm for two in one block", lambda: with_block(1, Shared(CONFIG)), "Both are equal."),
    ("first and last block tied", lambda: sharing("blocks.0", "blocks.2"), "Their weights are equal."),
    ("two token MLPs tied", lambda: sharing("blocks.0.tokens", "blocks.1.tokens"), "Their weights are equal."),
    ("a bias of two LayerNorms", one_bias_of_two, "It is one array."),
    ("last LayerNorm is an earlier one", lambda: sharing("blocks.0.norm1", "norm"), "Both are equal."),
    (
        "one layer without bias",
        lambda: replace("blocks.1.channels.fc1", lambda m: nn.Linear(m.in_features, m.out_features, bias=False)),
        "It is zero.",
    ),
)
_CONSTRAINTS = ("shared_parameters", "tied_blocks", "absent_parameters")


CASES = (
    *(Case(f"structure: {name}", make, DIFFERENT, why, causes=causes) for name, make, why, causes in _SUBLAYERS),
    *(Case(f"structure: {name}", make, NOT_OFFICIAL, why) for name, make, why in _BLOCKS),
    *(
        Case(f"structure: {name}", make, ("equivalent_under",), why, causes=_CONSTRAINTS)
        for name, make, why in _CONSTRAINED
    ),
    Case("structure: wrong in evaluation", EvaluatedWrongly, NOT_OFFICIAL, "Negative pixels are zero in eval mode."),
    Case(
        "structure: wrong in training",
        TrainedWrongly,
        ("equivalent",),
        "In eval mode it is the official one, with a warning of train mode.",
        words=("train mode",),
    ),
)
