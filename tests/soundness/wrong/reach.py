"""Mixers that are official only as far as ordinary numbers reach."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import NOT_OFFICIAL, Case
from tests.soundness.plain_torch import (
    ACT,
    HIDDEN,
    IMAGES,
    LOGITS,
    NORM,
    STREAM,
    Function,
    after,
    before,
    gelu,
    instead,
    replace,
)


def within(limit: float) -> Function:
    return lambda x: x.clamp(-limit, limit)


def below(limit: float) -> Function:
    return lambda x: x.clamp(max=limit)


def zero_beyond(limit: float) -> Function:
    return lambda x: torch.where(x.abs() > limit, 0.0, x)


def leaking_beyond(limit: float) -> Function:
    return lambda x: torch.where(x > limit, limit + 0.01 * (x - limit), x)


def capped_beyond(limit: float) -> Function:
    """A soft cap for large numbers alone: the others pass as they are."""
    return lambda x: torch.where(x.abs() > limit, limit * torch.tanh(x / limit) / torch.tanh(x.new_ones(())), x)


def norm_within(limit: float) -> Function:
    """Scales rows whose 2-norm is larger, as gradients are clipped."""
    return lambda x: x * (limit / x.norm(dim=-1, keepdim=True)).clamp(max=1)


def not_a_number_beyond(limit: float) -> Function:
    return lambda x: torch.nan_to_num(x + 0 * torch.log(limit - x.abs()))


def wrapped_beyond(limit: float) -> Function:
    """Overflows like an integer."""
    return lambda x: torch.where(x.abs() > limit, torch.remainder(x + limit, 2 * limit) - limit, x)


def loud_tokens_silenced(limit: float) -> Function:
    return lambda z: z * (z.norm(dim=-1, keepdim=True) < limit)


def largest_only(limit: float) -> Function:
    return lambda x: torch.maximum(x, x.amax(-1, keepdim=True) - limit)


class CappedNorm(nn.Module):
    """LayerNorm whose variance is at most `limit`."""

    def __init__(self, limit: float, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.limit, self.weight, self.bias = limit, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance.clamp(max=self.limit) + 1e-6) * self.weight + self.bias


def with_capped_norm(limit: float) -> nn.Module:
    return replace(NORM, functools.partial(CappedNorm, limit))


# Name, the module behind which, the function, its limit.
_BEHIND: tuple[tuple[str, str, Callable[[float], Function], float], ...] = (
    ("channel MLP clamped", HIDDEN, within, 6),
    ("channel MLP clamped", HIDDEN, within, 20),
    ("channel MLP clamped", HIDDEN, within, 100),
    ("token MLP clamped", "blocks.1.tokens.fc1", within, 10),
    ("token MLP clamped", "blocks.2.tokens.fc1", within, 50),
    ("activation as in ReLU6", ACT, below, 6),
    ("activation at most", ACT, below, 50),
    ("activation wraps", "blocks.0.tokens.act", wrapped_beyond, 30),
    ("branch clamped", "blocks.1.channels", within, 10),
    ("branch clamped", "blocks.2.tokens", within, 40),
    ("stream clamped", STREAM, within, 10),
    ("stream clamped", STREAM, within, 30),
    ("stream clamped", STREAM, within, 100),
    ("stream clamped from above", "blocks.0", below, 60),
    ("stream capped softly", STREAM, capped_beyond, 30),
    ("stream leaks", STREAM, leaking_beyond, 50),
    ("stream's norm clipped", STREAM, norm_within, 100),
    ("loud tokens silenced", STREAM, loud_tokens_silenced, 80),
    ("NaN is zero in the stream", STREAM, not_a_number_beyond, 40),
    ("logits clamped", LOGITS, within, 4),
    ("logits clamped", LOGITS, within, 20),
    ("logits clamped", LOGITS, within, 100),
    ("logits capped softly", LOGITS, capped_beyond, 15),
    ("logits capped softly", LOGITS, capped_beyond, 50),
    ("logits cut off", LOGITS, zero_beyond, 30),
    ("logits within reach of the largest", LOGITS, largest_only, 25),
    ("LayerNorm clamped", NORM, within, 5),
    ("LayerNorm clamped", NORM, within, 20),
    ("LayerNorm cut off", "blocks.2.norm2", zero_beyond, 12),
    ("last LayerNorm clamped", "norm", within, 10),
    ("stem clamped", "stem", within, 25),
)


def _behind(path: str, limited: Callable[[float], Function], limit: float) -> nn.Module:
    return after(path, limited(limit))


# Name, what makes the model, why it is wrong.
_OTHER: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("images clamped, 1", lambda: before(IMAGES, lambda x: x.clamp(0, 1)), "Images are cut to [0, 1]."),
    ("images clamped, 5", lambda: before(IMAGES, within(5)), "Large pixels are cut."),
    ("images clamped, 100", lambda: before(IMAGES, within(100)), "Larger pixels are cut."),
    ("hardtanh, 8", lambda: after(STREAM, nn.Hardtanh(-8, 8)), "The stream is cut at 8."),
    ("ReLU6 for the GELU of large numbers", lambda: instead(ACT, lambda x: gelu(x).clamp(max=6)), "It ends at 6."),
    ("identity for the GELU beyond 5", lambda: instead(ACT, lambda x: torch.where(x > 5, x, gelu(x))), "By 1e-6."),
    ("erf for the GELU beyond 4", lambda: instead(ACT, lambda x: torch.where(x > 4, F.gelu(x), gelu(x))), "By 1e-4."),
    ("zero for the GELU below -4", lambda: instead(ACT, lambda x: torch.where(x < -4, 0.0, gelu(x))), "By 1e-4."),
    ("small numbers are zero", lambda: after(NORM, nn.Hardshrink(1e-3)), "Those below 1e-3."),
    ("threshold at -20", lambda: after(STREAM, nn.Threshold(-20, -20)), "The stream ends there."),
    ("variance at most 50", lambda: with_capped_norm(50), "A loud stream is not normalised."),
    ("variance at most 2000", lambda: with_capped_norm(2000), "A loud stream is not normalised."),
)

# Name, what makes the model, its cause.
_USUAL: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("stream between -1 and 1", lambda: after("blocks.1", within(1)), "limit"),
    ("stream at most 0.5", lambda: after("blocks.1", below(0.5)), "limit"),
    ("logits between -0.5 and 0.5", lambda: after(LOGITS, within(0.5)), "limit"),
    ("stream by hardtanh", lambda: after("blocks.0", nn.Hardtanh(-1, 2)), "limit"),
    ("stream by a sine", lambda: after("blocks.0", torch.sin), "unknown"),
)

CASES = (
    *(
        Case(
            f"reach: {name}, {limit:g}",
            functools.partial(_behind, path, limited, limit),
            NOT_OFFICIAL,
            f"Numbers beyond {limit:g} are changed.",
        )
        for name, path, limited, limit in _BEHIND
    ),
    *(Case(f"reach: {name}", make, NOT_OFFICIAL, why) for name, make, why in _OTHER),
    *(
        Case(f"usual: {name}", make, NOT_OFFICIAL, "Usual numbers are changed.", (cause,))
        for name, make, cause in _USUAL
    ),
)
