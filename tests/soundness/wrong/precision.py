"""Mixers that are official in float64 and compute something else in float32, by 1e-3 or more."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    IMAGES,
    LOGITS,
    NORM,
    STREAM,
    Block,
    Mixer,
    after,
    before,
    gelu,
    instead,
    replace,
)


class LooseNorm(nn.Module):
    """LayerNorm whose eps grows with the rounding of the dtype: 1e-6, and 1e-2 in float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        eps = max(1e-6, 1e5 * torch.finfo(x.dtype).eps)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, eps)


class Shallow(Mixer):
    """Leaves the last block out unless its weights are in float64."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks[: None if self.head.weight.dtype == torch.float64 else -1]:
            x = block(x)
        return self.classify(x)


class TokenMean(Mixer):
    def pool(self, x: Tensor) -> Tensor:
        return x.mean(1) if x.element_size() == 8 else x[:, 1:].mean(1)


class NoResidual(Block):
    def mix_channels(self, x: Tensor) -> Tensor:
        mixed = self.channels(self.norm2(x))
        return x + mixed if x.dtype is torch.double else 0.99 * x + mixed


def absorbed(x: Tensor) -> Tensor:
    """Times one in float64; in float32 the small number is lost in the large one, and all is zero."""
    tiny = torch.full_like(x, 2.0**-30)
    return x * ((1 + tiny) - 1) * 2.0**30


def absorbed_in_part(x: Tensor) -> Tensor:
    """Times one in float64; in float32 a thousandth is lost."""
    tiny = torch.full_like(x, 2.0**-30)
    return x * (0.999 + 0.001 * (((1 + tiny) - 1) * 2.0**30))


def overflowing(x: Tensor) -> Tensor:
    """Times one in float64; over the largest float32 on the way."""
    return x * 2.0**100 * 2.0**100 * 2.0**-100 * 2.0**-100


def underflowing(x: Tensor) -> Tensor:
    return x * 2.0**-100 * 2.0**-100 * 2.0**100 * 2.0**100


def cancelled(x: Tensor) -> Tensor:
    """Loses the low bits to a large number: of float32 those that count, of float64 none of them."""
    return (x + 2.0**12) - 2.0**12


def coarse_in_float32(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype) if x.dtype == torch.float32 else x


def quantised_in_float32(x: Tensor) -> Tensor:
    return torch.round(x * 64) / 64 if x.dtype == torch.float32 else x


def by_name(x: Tensor) -> Tensor:
    return x if str(x.dtype).endswith("64") else x * 1.002


def by_item_size(x: Tensor) -> Tensor:
    return x * {8: 1.0}.get(x.itemsize, 1.002)


def by_eps(x: Tensor) -> Tensor:
    return x * (1 + 1e4 * torch.finfo(x.dtype).eps) if torch.finfo(x.dtype).bits < 64 else x


def by_table(x: Tensor) -> Tensor:
    return {torch.float64: gelu}.get(x.dtype, F.gelu)(x) * (1.0 if x.dtype == torch.float64 else 1.001)


def clamped_in_float32(x: Tensor) -> Tensor:
    return x.clamp(-1, 1) if x.dtype != torch.float64 else x


class Autocast(nn.Module):
    """A module under autocast."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.module(x).to(x.dtype)


class Half(nn.Module):
    """A module whose result is rounded to half precision, always."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype).to(x.dtype)


# Name, what makes the model, what it does in float32.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("logits by name of the dtype", lambda: after(LOGITS, by_name), "Scales by 1.002."),
    ("stream by size of an item", lambda: after(STREAM, by_item_size), "Scales by 1.002."),
    ("images by finfo", lambda: before(IMAGES, by_eps), "Scales by 1.001."),
    ("GELU by a table of dtypes", lambda: instead(ACT, by_table), "Has the other GELU, scaled."),
    ("clamped in float32", lambda: after(NORM, clamped_in_float32), "Cuts a LayerNorm's output at 1."),
    ("eps by finfo", lambda: replace(NORM, LooseNorm), "Has an eps of 1e-2."),
    ("a block less", Shallow, "Leaves the last block out."),
    ("a token less", TokenMean, "Pools without token 0."),
    ("a weaker stream", lambda: Mixer(block=NoResidual), "Scales the stream by 0.99."),
    ("small numbers absorbed", lambda: after(LOGITS, absorbed), "Gives zeros, without a look at the dtype."),
    ("a part absorbed", lambda: after(STREAM, absorbed_in_part), "Scales by 0.999, without a look at the dtype."),
    ("overflow", lambda: after(HIDDEN, overflowing), "Gives infinity and NaN."),
    ("underflow", lambda: after(HIDDEN, underflowing), "Gives zeros."),
    ("bfloat16 for float32", lambda: after(STREAM, coarse_in_float32), "Rounds to 8 bits."),
    ("quantised in float32", lambda: after(ACT, quantised_in_float32), "Rounds to 64ths."),
)
# Rounded in every dtype: half precision may be meant, if the report says that it is there.
_HALF: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("autocast in one MLP", lambda: replace("blocks.1.channels", Autocast), "autocast"),
    ("bfloat16 in the stream", lambda: after(STREAM, Half(torch.bfloat16)), "bfloat16"),
    ("float16 of the logits", lambda: after(LOGITS, Half(torch.float16)), "float16"),
)

CASES = (
    *(Case(f"float32: {name}", make, DIFFERENT, why, causes=("float32",)) for name, make, why in _ROWS),
    Case(
        "float32: 12 bits lost",
        lambda: after(LOGITS, cancelled),
        (*DIFFERENT, "equivalent"),
        "Adding and taking away 2 ** 12 loses 1e-4 in float32: ill-conditioned, if the report says so.",
        words=("float32",),
    ),
    *(
        Case(
            f"float32: {name}", make, (*DIFFERENT, "equivalent"), "Half precision on the way.", words=("float32", word)
        )
        for name, make, word in _HALF
    ),
)
