"""Mixers that are another function by a little, or in one place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import CONFIG, CONVENTION, DIFFERENT, NOT_OFFICIAL, Case, Result
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    IMAGES,
    LOGITS,
    NORM,
    STREAM,
    Function,
    Mixer,
    after,
    before,
    gelu,
    instead,
    replace,
)

TWELVE = CONFIG.replace(num_blocks=12)


class Norm(nn.Module):
    """LayerNorm by a function of the row and its deviation from the mean, with the weights of another."""

    def __init__(self, normalise: Function, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.normalise, self.weight, self.bias = normalise, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x) * self.weight + self.bias


def normed(path: str, normalise: Function, model: nn.Module | None = None) -> nn.Module:
    return replace(path, functools.partial(Norm, normalise), model)


def with_eps(eps: float) -> Function:
    return lambda x: F.layer_norm(x, x.shape[-1:], eps=eps)


def unbiased(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


def eps_outside(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-6)


def mean_absolute(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.abs().mean(-1, keepdim=True) + 1e-6)


def of_the_first_token(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance[:, :1] + 1e-6).sqrt()


def tanh_gelu(factor: float = math.sqrt(2 / math.pi), cubic: float = 0.044715) -> Function:
    return lambda x: 0.5 * x * (1 + torch.tanh(factor * (x + cubic * x**3)))


def mixed_by_channel(x: Tensor) -> Tensor:
    """The other GELU for every second hidden unit."""
    return torch.where(torch.arange(x.shape[-1]) % 2 == 0, gelu(x), F.gelu(x))


def other_for_token(token: int) -> Function:
    return lambda x: torch.where(torch.arange(x.shape[1])[:, None] == token, F.gelu(x), gelu(x))


def only(axis: int, index: int, function: Function) -> Function:
    """`function` at one index of an axis."""

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        x.select(axis, index).copy_(function(x.select(axis, index)))
        return x

    return changed


def scaled(scale: float) -> Function:
    return lambda x: x * scale


def pooled(pool: Function) -> Callable[[], nn.Module]:
    return lambda: type("Pooled", (Mixer,), {"pool": lambda self, x: pool(x)})()


def ended(end: Function) -> Callable[[], nn.Module]:
    return lambda: type("Ended", (Mixer,), {"classify": lambda self, x: end(Mixer.classify(self, x))})()


def overlapping() -> nn.Module:
    ph, pw = CONFIG.patch_hw
    conv = nn.Conv2d(CONFIG.in_channels, CONFIG.hidden_dim, (ph, pw + 1), (ph, pw), padding=(0, 1))
    return instead(IMAGES, nn.Sequential(conv, Crop()))


class Crop(nn.Module):
    """To as many patches as there should be."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : CONFIG.grid_hw[0], : CONFIG.grid_hw[1]]


def dilated() -> nn.Module:
    (ph, pw), padding = CONFIG.patch_hw, (1, 0)
    conv = nn.Conv2d(CONFIG.in_channels, CONFIG.hidden_dim, (ph, pw), (ph, pw), padding=padding, dilation=(2, 1))
    return instead(IMAGES, nn.Sequential(conv, Crop()))


# Another value than the official one of what conventions are about, in one place or all.
_CONVENTIONS: tuple[tuple[str, Callable[[], nn.Module], str, tuple[str, ...]], ...] = (
    ("one LayerNorm without eps", lambda: normed(NORM, with_eps(0.0)), "Its eps is zero.", ("layer_norm_eps",)),
    ("one eps of 1.1e-6", lambda: normed("norm", with_eps(1.1e-6)), "By a tenth of 1e-6.", ("layer_norm_eps",)),
    ("one eps of 1e-5", lambda: normed("blocks.2.norm2", with_eps(1e-5)), "By 9e-6.", ("layer_norm_eps",)),
    (
        "one eps of 1e-5 in twelve blocks",
        lambda: normed("blocks.9.norm1", with_eps(1e-5), Mixer(TWELVE)),
        "It is in block 9.",
        ("layer_norm_eps",),
    ),
    ("erf in the last block", lambda: instead("blocks.2.channels.act", F.gelu), "One of six.", ("activation",)),
    ("erf in one token MLP", lambda: instead("blocks.0.tokens.act", F.gelu), "One of six.", ("activation",)),
    (
        "erf in one of twelve blocks",
        lambda: instead("blocks.7.tokens.act", F.gelu, Mixer(TWELVE)),
        "One of 24.",
        ("activation",),
    ),
    ("GELU of 0.0447", lambda: instead(ACT, tanh_gelu(cubic=0.0447)), "By 1e-5 in one MLP.", ("activation",)),
    ("GELU of 0.044714998", lambda: instead(ACT, tanh_gelu(cubic=0.044714998)), "By 1e-9 there.", ("activation",)),
    ("GELU of 0.79788", lambda: instead(ACT, tanh_gelu(0.79788)), "By 1e-6 in one MLP.", ("activation",)),
    ("GELU of 0.79788456", lambda: instead(ACT, tanh_gelu(0.79788456)), "By 1e-9 in one MLP.", ("activation",)),
    ("quick GELU in one MLP", lambda: instead(ACT, lambda x: x * torch.sigmoid(1.702 * x)), "One.", ("activation",)),
)
# Other forms: no convention has a name for them.
_LITTLE: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("GELU of 0.79", lambda: instead(ACT, tanh_gelu(0.79)), "Two digits are no rounded constant."),
    ("GELU half erf", lambda: instead(ACT, lambda x: (gelu(x) + F.gelu(x)) / 2), "Between both."),
    ("unbiased variance in one", lambda: normed(NORM, unbiased), "By 1 / (hidden - 1)."),
    ("eps outside of the root", lambda: normed(NORM, eps_outside), "Added to the deviation."),
    ("mean absolute deviation", lambda: normed("blocks.0.norm2", mean_absolute), "For the standard deviation."),
    ("variance of token 0", lambda: normed("blocks.2.norm1", of_the_first_token), "For all tokens."),
    ("stream times 1 + 1e-7", lambda: after(STREAM, scaled(1.0000001)), "Between two blocks."),
    ("stream times 1 - 1e-9", lambda: after(STREAM, scaled(1 - 1e-9)), "Between two blocks."),
    ("mean without the last token", pooled(lambda x: x[:, :-1].mean(1)), "One token is missed."),
    ("mean of one token twice", pooled(lambda x: (x.sum(1) + x[:, 0]) / (x.shape[1] + 1)), "It weighs more."),
    ("median", pooled(lambda x: x.median(1).values), "For the mean."),
    ("mean and 1e-6 of the maximum", pooled(lambda x: torch.lerp(x.mean(1), x.amax(1), 1e-6)), "By 1e-6."),
    ("rounded to 6 decimals", lambda: after(LOGITS, lambda x: x.round(decimals=6)), "By 1e-7."),
    ("quantised activations", lambda: after(HIDDEN, lambda x: (128 * x).round() / 128), "To 128ths."),
    ("integers of 8 bits", lambda: after(ACT, lambda x: (32 * x).to(torch.int32).to(x.dtype) / 32), "To 32nds."),
    ("a cubic term of 1e-9", lambda: after(HIDDEN, lambda x: x + 1e-9 * x**3), "In one MLP."),
    ("other GELU for half of the units", lambda: instead(ACT, mixed_by_channel), "In one MLP."),
    ("other GELU for token 5", lambda: instead(ACT, other_for_token(5)), "In one MLP."),
    ("one token scaled", lambda: after(STREAM, only(1, 5, scaled(1.0001))), "Between two blocks."),
    ("one channel scaled", lambda: after(STREAM, only(2, 7, scaled(1.0001))), "Between two blocks."),
    ("one class squared", lambda: after(LOGITS, only(1, 3, torch.square)), "Class 3."),
    ("one class rectified", lambda: after(LOGITS, only(1, 6, torch.relu)), "Class 6."),
    ("one class without sign", lambda: after(LOGITS, only(1, 0, torch.abs)), "Class 0."),
    ("last row of pixels black", lambda: before(IMAGES, only(2, -1, torch.zeros_like)), "It is not seen."),
    ("last pixel black", lambda: before(IMAGES, only(3, -1, lambda x: only(2, -1, torch.zeros_like)(x))), "Nor it."),
    ("one column rectified", lambda: before(IMAGES, only(3, 4, torch.relu)), "Negative pixels are zero there."),
    ("gamma on images", lambda: before(IMAGES, lambda x: x.sign() * x.abs() ** 1.001), "A power of 1.001."),
    (
        "images less their mean",
        lambda: before(IMAGES, lambda x: x - 1e-3 * x.mean((1, 2, 3), True)),
        "By a thousandth.",
    ),
    ("images a pixel down", lambda: before(IMAGES, lambda x: x.roll(1, 2)), "Patches are others."),
    ("images padded and cropped", lambda: before(IMAGES, lambda x: F.pad(x, (1, 0))[..., :-1]), "Patches are others."),
    (
        "images resized twice",
        lambda: before(IMAGES, lambda x: F.interpolate(F.interpolate(x, (7, 9)), (8, 9))),
        "Rows.",
    ),
    ("overlapping patches", overlapping, "By one pixel."),
    ("dilated patches", dilated, "Patches are others."),
)
_ENDS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("log-softmax", ended(lambda y: y.log_softmax(-1)), "Logits are normalised."),
    ("sigmoid", ended(torch.sigmoid), "Probabilities are returned."),
    ("logits less their maximum", ended(lambda y: y - 1e-3 * y.amax(-1, keepdim=True)), "By a thousandth."),
    ("soft sign", ended(lambda y: y / (1 + 1e-6 * y.abs())), "By 1e-6."),
    ("logits of unit norm", ended(lambda y: F.normalize(y, dim=-1)), "Their length is lost."),
    ("classes in order", ended(lambda y: y.sort(-1).values), "They are sorted by value."),
)


def _cases(
    rows: tuple[tuple[str, Callable[[], nn.Module], str], ...], verdicts: tuple[Result, ...]
) -> tuple[Case, ...]:
    return tuple(Case(f"mathematics: {name}", make, verdicts, why) for name, make, why in rows)


CASES = (
    *(
        Case(f"mathematics: {name}", make, CONVENTION, why, causes=(*causes, "unknown"))
        for name, make, why, causes in _CONVENTIONS
    ),
    *_cases(_LITTLE, NOT_OFFICIAL),
    *_cases(_ENDS, DIFFERENT),
    Case(
        "mathematics: mean with a small number",
        pooled(lambda x: x.sum(1) / (x.shape[1] + 1e-6)),
        CONVENTION,
        "A masked mean is so written; the head can take the factor in, which has to be said.",
    ),
    Case(
        "mathematics: a large number added and taken away",
        lambda: after(STREAM, lambda x: (x + 1e8) - 1e8),
        (*DIFFERENT, "equivalent"),
        "It rounds to 1e-8 in float64: ill-conditioned, if the report says so.",
        words=("conditioned", "rounding", "DIFFERENT"),
    ),
)
