"""The official function computed in parts, and with biases as rows of kernels, in torch.

`PARTS` are writings of the official function; `PARTS[name](config, fault)` with a fault among `FAULTS` is another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig

FAULTS = "erf", "one chunk without bias"
CHUNKS = 3


def noise(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[0] ** -0.5)


class Dense(nn.Module):
    """A kernel (inputs, outputs) and a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel, self.bias = noise(inputs, outputs), noise(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.bias


class BiasRow(nn.Module):
    """A kernel whose last row, or first, is the bias: it takes its input with a column of ones."""

    def __init__(self, inputs: int, outputs: int, *, is_first: bool = False) -> None:
        super().__init__()
        self.kernel, self.is_first = noise(inputs + 1, outputs), is_first

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones_like(x[..., :1])
        return torch.cat([ones, x] if self.is_first else [x, ones], -1) @ self.kernel


class InParts(nn.Module):
    """The official function, in which the methods `tokens` and `channels` may be others."""

    dense: Callable[[int, int], nn.Module] = Dense

    def __init__(self, config: MixerConfig, fault: str = "") -> None:
        super().__init__()
        self.config, self.fault = config, fault
        s, d, ds, dc = config.num_tokens, config.hidden_dim, config.tokens_mlp_dim, config.channels_mlp_dim
        depth, dense = range(config.num_blocks), type(self).dense
        self.stem = dense(math.prod(config.patch_hw) * config.in_channels, d)
        self.token_mlps = nn.ModuleList(nn.ModuleList([dense(s, ds), dense(ds, s)]) for _ in depth)
        self.channel_mlps = nn.ModuleList(nn.ModuleList([dense(d, dc), dense(dc, d)]) for _ in depth)
        self.norms = nn.ModuleList(nn.LayerNorm(d, 1e-6) for _ in range(2 * config.num_blocks + 1))
        self.head = dense(d, config.num_classes)

    def act(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="none" if self.fault == "erf" else "tanh")

    def bias(self, layer: Any, part: slice) -> Tensor:
        """A part of a layer's bias; none for the second part, with the fault of that name."""
        held = layer.bias[part]
        return torch.zeros_like(held) if self.fault == "one chunk without bias" and part.start else held

    def mlp(self, layers: Any, x: Tensor) -> Tensor:
        up, down = layers
        return down(self.act(up(x)))

    def tokens(self, layers: Any, x: Tensor) -> Tensor:
        return self.mlp(layers, x.mT).mT

    def channels(self, layers: Any, x: Tensor) -> Tensor:
        return self.mlp(layers, x)

    def patches(self, images: Tensor) -> Tensor:
        return F.unfold(images, self.config.patch_hw, stride=self.config.patch_hw).mT

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.patches(images))
        for i in range(self.config.num_blocks):
            x = x + self.tokens(self.token_mlps[i], self.norms[2 * i](x))
            x = x + self.channels(self.channel_mlps[i], self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


# --- Ways to apply an MLP in parts ---


def spans(size: int, parts: int = CHUNKS) -> Iterator[slice]:
    """Slices that cut `size` elements in parts, of which the last may be smaller."""
    step = -(-size // parts)
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def hidden_sum(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """The sum over parts of the hidden units, by slices."""
    up, down = layers
    total: Any = 0
    for part in spans(up.kernel.shape[1]):
        total = total + self.act(x @ up.kernel[:, part] + self.bias(up, part)) @ down.kernel[part]
    return total + down.bias


def hidden_chunks(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """The same by `torch.chunk`, with the bias first and products added in place."""
    up, down = layers
    total = down.bias.expand(*x.shape[:-1], -1).clone()
    chunks = zip(up.kernel.chunk(CHUNKS, 1), up.bias.chunk(CHUNKS), down.kernel.chunk(CHUNKS), strict=True)
    for i, (into, bias, out) in enumerate(chunks):
        h = x @ into + (0 * bias if i and self.fault == "one chunk without bias" else bias)
        total += self.act(h) @ out
    return total


def strided_units(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """Every other hidden unit, then the others, and `torch.stack(...).sum`."""
    up, down = layers
    parts = []
    for i in (0, 1):
        bias = up.bias[i::2] * (0 if i and self.fault == "one chunk without bias" else 1)
        parts.append(self.act(F.linear(x, up.kernel[:, i::2].T, bias)) @ down.kernel[i::2])
    return torch.stack(parts).sum(0) + down.bias


def joined_units(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """Hidden units in parts, joined before the second layer."""
    up, down = layers
    return down(torch.cat([self.act(x @ up.kernel[:, part] + self.bias(up, part)) for part in spans(len(up.bias))], -1))


def row_chunks(self: InParts, layers: Any, x: Tensor, axis: int = 1) -> Tensor:
    """Parts of the tokens, or of another axis, one after the other."""
    up, down = layers
    outs = []
    for i, part in enumerate(x.split(4 if axis else 1, axis)):
        bias = up.bias * (0 if i and self.fault == "one chunk without bias" else 1)
        outs.append(down(self.act(part @ up.kernel + bias)))
    return torch.cat(outs, axis)


def one_row_at_a_time(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """One row of the second axis at a time, written into a tensor that was there before."""
    up, down = layers
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        bias = up.bias * (0 if i and self.fault == "one chunk without bias" else 1)
        out[:, i] = down(self.act(x[:, i] @ up.kernel + bias))
    return out


def one_row_stacked(self: InParts, layers: Any, x: Tensor) -> Tensor:
    """One row of the second axis at a time, stacked."""
    up, down = layers
    outs = []
    for i, row in enumerate(x.unbind(1)):
        bias = up.bias * (0 if i and self.fault == "one chunk without bias" else 1)
        outs.append(down(self.act(row @ up.kernel + bias)))
    return torch.stack(outs, 1)


def _writing(**mlps: Callable[..., Tensor]) -> type[InParts]:
    """`InParts` with MLPs over "tokens", "channels" or both, each by a function for an MLP."""
    methods: dict[str, Any] = {}
    if "channels" in mlps:
        methods["channels"] = mlps["channels"]
    if "tokens" in mlps:
        mix = mlps["tokens"]
        methods["tokens"] = lambda self, layers, x: mix(self, layers, x.mT).mT
    return type("InParts", (InParts,), methods)


class BranchInParts(InParts):
    """The branch of the channels, LayerNorm and addition included, for some tokens at a time."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(self.patches(images))
        for i in range(self.config.num_blocks):
            x = x + self.tokens(self.token_mlps[i], self.norms[2 * i](x))
            x = torch.cat([self.branch(part, i, is_first=n == 0) for n, part in enumerate(x.split(4, 1))], 1)
        return self.head(self.norms[-1](x).mean(1))

    def branch(self, x: Tensor, i: int, *, is_first: bool) -> Tensor:
        up, down = self.channel_mlps[i]
        bias = up.bias * (0 if self.fault == "one chunk without bias" and not is_first else 1)
        return x + down(self.act(self.norms[2 * i + 1](x) @ up.kernel + bias))


class Experts(InParts):
    """Each MLP is several with some of the hidden units, whose results are added; the last of them has the bias."""

    def __init__(self, config: MixerConfig, fault: str = "") -> None:
        super().__init__(config, fault)
        of_tokens = ((config.num_tokens, config.tokens_mlp_dim) for _ in self.token_mlps)
        of_channels = ((config.hidden_dim, config.channels_mlp_dim) for _ in self.channel_mlps)
        self.token_mlps = nn.ModuleList(self.experts(*sizes) for sizes in of_tokens)
        self.channel_mlps = nn.ModuleList(self.experts(*sizes) for sizes in of_channels)

    @staticmethod
    def experts(size: int, width: int) -> nn.ModuleList:
        widths = [part.stop - part.start for part in spans(width)]
        last = len(widths) - 1
        return nn.ModuleList(
            nn.ModuleList([nn.Linear(size, part), nn.Linear(part, size, bias=i == last)])
            for i, part in enumerate(widths)
        )

    def mlp(self, layers: Any, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for i, (up, down) in enumerate(layers):
            bias = up.bias * (0 if i and self.fault == "one chunk without bias" else 1)
            total = total + down(self.act(F.linear(x, up.weight, bias)))
        return total


class InSeveral(Experts):
    """Experts, behind a convolution for each colour, and before a head for each of two groups of classes."""

    def __init__(self, config: MixerConfig, fault: str = "") -> None:
        super().__init__(config, fault)
        colours, hidden, patch = config.in_channels, config.hidden_dim, config.patch_hw
        self.stems = nn.ModuleList(nn.Conv2d(1, hidden, patch, patch, bias=i == 1) for i in range(colours))
        self.heads = nn.ModuleList(nn.Linear(hidden, count) for count in (2, config.num_classes - 2))
        del self.stem, self.head

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.stack([stem(colour) for stem, colour in zip(self.stems, images.split(1, 1), strict=True)])
        x = maps.sum(0).flatten(2).mT
        for i in range(self.config.num_blocks):
            x = x + self.tokens(self.token_mlps[i], self.norms[2 * i](x))
            x = x + self.channels(self.channel_mlps[i], self.norms[2 * i + 1](x))
        y = self.norms[-1](x).mean(1)
        return torch.cat([head(y) for head in self.heads], 1)


PARTS: dict[str, type[InParts]] = {
    "the branch of the channels in parts of tokens": BranchInParts,
    "channels in parts of hidden units": _writing(channels=hidden_sum),
    "channels by chunk, bias first": _writing(channels=hidden_chunks),
    "channels by every other unit": _writing(channels=strided_units),
    "channels in parts that are joined": _writing(channels=joined_units),
    "channels in parts of tokens": _writing(channels=row_chunks),
    "channels in parts of the batch": _writing(channels=lambda *given: row_chunks(*given, axis=0)),
    "channels token by token": _writing(channels=one_row_stacked),
    "tokens channel by channel": _writing(tokens=one_row_stacked),
    "tokens channel by channel, written into place": _writing(tokens=one_row_at_a_time),
    "tokens in parts of channels": _writing(tokens=row_chunks),
    "tokens in parts of hidden units": _writing(tokens=hidden_sum),
    "everything in parts": _writing(tokens=hidden_chunks, channels=hidden_sum),
    "tokens and channels row by row": _writing(tokens=one_row_at_a_time, channels=one_row_stacked),
}

# Those whose parameters are parts of the official ones.
SEVERAL: dict[str, type[InParts]] = {"experts": Experts, "experts, colours and groups of classes": InSeveral}

BIAS_ROWS: dict[str, type[InParts]] = {
    "last": type("BiasRows", (InParts,), {"dense": BiasRow}),
    "first": type("BiasRows", (InParts,), {"dense": partial(BiasRow, is_first=True)}),
}
