"""A Mixer as a tutorial writes it, with mistakes that people make put in by name, alone or together.

`MISTAKES` has for each its verdict, cause, words and places, written down before any was run.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig


class OverTokens(nn.LayerNorm):
    """A LayerNorm of (batch, tokens, hidden) over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


class OverBoth(nn.Module):
    """A LayerNorm of (batch, tokens, hidden) over both axes, with a scale and a bias for each channel."""

    def __init__(self, hidden: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], eps=self.eps) * self.weight + self.bias


class OverBatch(nn.BatchNorm1d):
    """A BatchNorm of (batch, tokens, hidden), with statistics as after some training."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.running_mean.normal_()
        self.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


def norm_of(config: MixerConfig, mistakes: Collection[str], *, over_tokens: bool = False) -> nn.Module:
    """The LayerNorm, or the layer in its place."""
    hidden, eps = config.hidden_dim, 1e-5 if "eps" in mistakes else 1e-6
    if "LayerNorm over tokens" in mistakes and over_tokens:
        return OverTokens(config.num_tokens, eps)
    if "LayerNorm over both axes" in mistakes:
        return OverBoth(hidden, eps)
    return OverBatch(hidden) if "BatchNorm" in mistakes else nn.LayerNorm(hidden, eps)


class Mlp(nn.Sequential):
    def __init__(self, size: int, width: int, erf: bool) -> None:
        super().__init__(nn.Linear(size, width), nn.GELU("none" if erf else "tanh"), nn.Linear(width, size))


class Block(nn.Module):
    def __init__(self, config: MixerConfig, mistakes: Collection[str]) -> None:
        super().__init__()
        self.mistakes = mistakes
        tokens, hidden, erf = config.num_tokens, config.hidden_dim, "erf" in mistakes
        sizes = [(tokens, config.tokens_mlp_dim)] * (1 + ("two token MLPs" in mistakes))
        self.token_mlps = nn.ModuleList(Mlp(*size, erf) for size in sizes)
        sizes = [(hidden, config.channels_mlp_dim)] * (1 + ("two channel MLPs" in mistakes))
        self.channel_mlps = nn.ModuleList(Mlp(*size, erf) for size in sizes)
        self.token_norms = nn.ModuleList(norm_of(config, mistakes, over_tokens=True) for _ in self.token_mlps)
        self.channel_norms = nn.ModuleList(norm_of(config, mistakes) for _ in self.channel_mlps)

    def mix_tokens(self, x: Tensor) -> Tensor:
        for norm, mlp in zip(self.token_norms, self.token_mlps, strict=True):
            x = norm(x + mlp(x.mT).mT) if "token post-norm" in self.mistakes else x + mlp(norm(x).mT).mT
        return x

    def mix_channels(self, x: Tensor) -> Tensor:
        for norm, mlp in zip(self.channel_norms, self.channel_mlps, strict=True):
            x = norm(x + mlp(x)) if "channel post-norm" in self.mistakes else x + mlp(norm(x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        if "channels first" in self.mistakes:
            return self.mix_tokens(self.mix_channels(x))
        return self.mix_channels(self.mix_tokens(x))


class MiswrittenMixer(nn.Module):
    """The official function, but for the `mistakes` among those of `MISTAKES`."""

    def __init__(self, config: MixerConfig, mistakes: Collection[str] = ()) -> None:
        super().__init__()
        self.mistakes, (ph, pw), hidden = mistakes, config.patch_hw, config.hidden_dim
        kernel, padding = (ph, pw), (0, 0)
        if "overlapping stem" in mistakes:
            kernel, padding = (ph + 2, pw + 2), (1, 1)
        elif "padded stem" in mistakes:
            padding = ph // 2, pw // 2
        self.stem = nn.Conv2d(config.in_channels, hidden, kernel, (ph, pw), padding)
        outer = zip(config.image_hw, kernel, padding, (ph, pw), strict=True)
        rows, columns = ((side + 2 * zeros - size) // stride + 1 for side, size, zeros, stride in outer)
        config = config.replace(image_size=(rows * ph, columns * pw))
        tokens = config.num_tokens
        self.second_stem = nn.Linear(hidden, hidden) if "two stems" in mistakes else nn.Identity()
        self.stem_norm = norm_of(config, ()) if "LayerNorm after the stem" in mistakes else nn.Identity()
        self.blocks = nn.Sequential(*(Block(config, mistakes) for _ in range(config.num_blocks)))
        self.norm = nn.Identity() if "no final LayerNorm" in mistakes else norm_of(config, mistakes)
        features = tokens if "mean over channels" in mistakes else hidden
        features = tokens * hidden if "flattened" in mistakes else features
        self.head: nn.Module = nn.Linear(features, config.num_classes)
        if "MLP head" in mistakes:
            self.head = nn.Sequential(nn.Linear(features, 11), nn.ReLU(), nn.Linear(11, config.num_classes))

    def embed(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        batch, hidden, height, width = x.shape
        reshaped = "reshaped" in self.mistakes
        x = x.reshape(batch, height * width, hidden) if reshaped else x.flatten(2).transpose(1, 2)
        return self.stem_norm(self.second_stem(x))

    def pool(self, x: Tensor) -> Tensor:
        pooled = {
            "mean over channels": lambda: x.mean(2),
            "flattened": lambda: x.flatten(1),
            "logits of every token": lambda: x,
            "first token": lambda: x[:, 0],
            "last token": lambda: x[:, -1],
        }
        return next((make() for name, make in pooled.items() if name in self.mistakes), x.mean(1))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.pool(self.norm(self.blocks(self.embed(images)))))
        for name in ("softmax", "log_softmax"):
            logits = getattr(F, name)(logits, -1) if name in self.mistakes else logits
        return logits.sigmoid() if "sigmoid" in self.mistakes else logits


class Mistake(NamedTuple):
    """The verdict on a Mixer with this mistake alone; the cause, what is found, and at how many of which places.

    `first` is the place with which the cause's evidence begins.
    """

    verdict: str
    cause: str
    found: str
    count: str
    first: str


_I, _D, _U = "inexpressible", "different", "equivalent_under"
_TOKENS, _CHANNELS = "LayerNorm_0 in both blocks", "LayerNorm_1 in both blocks"
_FIRST, _POOL = "before MixerBlock_0/LayerNorm_0", "pre_head_layer_norm/mean"

# For models of two blocks.
MISTAKES: dict[str, Mistake] = {
    "erf": Mistake(_U, "activation", "gelu", "4 of 4 MLPs", "everywhere"),
    "eps": Mistake(_U, "layer_norm_eps", "1e-05", "5 of 5 LayerNorms", "everywhere"),
    "reshaped": Mistake(_D, "reshape", "reshaped", "1 place", _FIRST),
    "mean over channels": Mistake(_D, "pooling", "mean over channels", "1 of 1 pooling", "everywhere"),
    "flattened": Mistake(_D, "pooling", "none, all tokens side by side", "1 of 1 pooling", "everywhere"),
    "logits of every token": Mistake(_D, "pooling", "none, logits of every token", "1 of 1 pooling", "everywhere"),
    "first token": Mistake(_D, "pooling", "first token", "1 of 1 pooling", "everywhere"),
    "last token": Mistake(_D, "pooling", "last token", "1 of 1 pooling", "everywhere"),
    "no final LayerNorm": Mistake(_I, "layer_norm_missing", "none", "1 of 5 LayerNorms", "pre_head_layer_norm"),
    "MLP head": Mistake(_I, "mlp_head", "several layers", "1 head", "head"),
    "softmax": Mistake(_D, "output", "softmax", "1 output", "head"),
    "log_softmax": Mistake(_D, "output", "log_softmax", "1 output", "head"),
    "sigmoid": Mistake(_D, "output", "sigmoid", "1 output", "head"),
    "LayerNorm over tokens": Mistake(_I, "layer_norm_axes", "tokens", "2 of 5 LayerNorms", _TOKENS),
    "LayerNorm over both axes": Mistake(
        _I, "layer_norm_axes", "tokens and channels", "5 of 5 LayerNorms", "everywhere"
    ),
    "LayerNorm after the stem": Mistake(_I, "norm_after_stem", "stem, LayerNorm", "1 stem", "stem"),
    "token post-norm": Mistake(_D, "post_norm", "after each addition", "2 of 5 LayerNorms", _TOKENS),
    "channel post-norm": Mistake(_D, "post_norm", "after each addition", "2 of 5 LayerNorms", _CHANNELS),
    "overlapping stem": Mistake(_I, "patches", "overlapping, 5x4 every 3x2, padded by 1x1", "1 stem", "stem/cut"),
    "padded stem": Mistake(_I, "patches", "3x2 every 3x2, padded by 1x1", "1 stem", "stem/cut"),
    "BatchNorm": Mistake(_I, "batch_norm", "a BatchNorm", "5 of 5 LayerNorms", "everywhere"),
    "two token MLPs": Mistake(_I, "extra_mlp", "more than one MLP", "2 MLPs", "token_mixing in both blocks"),
    "two channel MLPs": Mistake(_I, "extra_mlp", "more than one MLP", "2 MLPs", "channel_mixing in both blocks"),
    "channels first": Mistake(_D, "sublayers_swapped", "channel mixing first", "2 blocks", "both blocks"),
}

# The official function, with two affine layers for a stem.
RIGHT = ("two stems",)

_POOLINGS = frozenset({"mean over channels", "flattened", "logits of every token", "first token", "last token"})
_LAYER_NORMS = frozenset({"LayerNorm over both axes", "BatchNorm", "LayerNorm over tokens"})

# Mistakes of which one leaves nothing for the other to be made at, with the reason.
HIDING: dict[frozenset[str], str] = {
    _POOLINGS: "there is one pooling",
    frozenset({"overlapping stem", "padded stem"}): "there is one stem",
    frozenset({"softmax", "log_softmax", "sigmoid"}): "each is a function of the one before, and people apply one",
    _LAYER_NORMS: "each LayerNorm is over one thing",
    frozenset({"BatchNorm", "eps"}): "a BatchNorm has an eps of its own",
    frozenset({"LayerNorm after the stem", "token post-norm"}): (
        "the LayerNorm after the stem stands where the first branch's should, whose own is a further one"
    ),
}


def hides(one: str, other: str) -> bool:
    """Whether one of two mistakes hides the other."""
    return any({one, other} <= group for group in HIDING)
