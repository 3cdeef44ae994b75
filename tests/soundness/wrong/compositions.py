"""Mixers with two faults that hide each other: one is the condition of the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import CONFIG, DIFFERENT, NEUTRAL, Case, Result
from tests.soundness.plain_torch import ACT, HIDDEN, LOGITS, NORM, STREAM, after, before, gelu, instead


class Calls(nn.Module):
    """Hands the number of the call on."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.calls, self.function = 0, function

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x, self.calls)


class CountedGate(nn.Module):
    """A buffer of ones, which counts only in batches."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.ones(CONFIG.hidden_dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:1], x[1:] * self.gate])


def place(x: Tensor) -> Tensor:
    return torch.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1))


def second_in_float32(x: Tensor) -> Tensor:
    return torch.where(place(x) == 1, x * 1.01, x) if x.dtype == torch.float32 else x


def large_in_batches(x: Tensor) -> Tensor:
    return x / 255 if len(x) > 1 and x.abs().max() > 10 else x


def clamped_for_the_second(y: Tensor) -> Tensor:
    return torch.where(place(y) == 1, y.clamp(-20, 20), y)


def clamped_for_class(y: Tensor) -> Tensor:
    return torch.cat([y[:, :3], y[:, 3:4].clamp(-15, 15), y[:, 4:]], 1)


def clamped_in_float32(x: Tensor) -> Tensor:
    return x.clamp(-30, 30) if x.dtype == torch.float32 else x


def later_in_float32(x: Tensor, call: int) -> Tensor:
    return x * 1.01 if call > 2 and x.dtype == torch.float32 else x


def later_erf(x: Tensor, call: int) -> Tensor:
    return F.gelu(x) if call >= 3 else gelu(x)


def later_rolled(x: Tensor, call: int) -> Tensor:
    return x.roll(call - 1, 1)


def later_clamped(x: Tensor, call: int) -> Tensor:
    return x.clamp(-20, 20) if call > 1 else x


def later_for_positive(x: Tensor, call: int) -> Tensor:
    return x * 1.01 if call > 1 and x.mean() > 0 else x


def batch_of_one_with_gradients(x: Tensor) -> Tensor:
    return x * 1.01 if len(x) == 1 and torch.is_grad_enabled() else x


def two_clamps() -> nn.Module:
    return after(HIDDEN, nn.Hardtanh(-40, 40), after(LOGITS, nn.Hardtanh(-60, 60)))


def erf_and_leak() -> nn.Module:
    return after(STREAM, lambda z: z + 1e-6 * (z - z[:1]), instead(ACT, F.gelu))


def fourth_only(x: Tensor, call: int) -> Tensor:
    return 2 * x if call == 4 else x


# Name, what makes the model, why it is wrong.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("image 1 in float32", lambda: after(LOGITS, second_in_float32), "Scaled by 1.01 there alone."),
    ("large images in batches", lambda: before("stem", large_in_batches), "Divided by 255 there alone."),
    ("logits clamped for image 1", lambda: after(LOGITS, clamped_for_the_second), "Cut at 20 there alone."),
    ("one class clamped", lambda: after(LOGITS, clamped_for_class), "Cut at 15."),
    ("clamped in float32", lambda: after(STREAM, clamped_in_float32), "Cut at 30 there alone."),
    ("third call in float32", lambda: after(LOGITS, Calls(later_in_float32)), "Scaled by 1.01 from then on."),
    ("erf from the third call", lambda: instead(ACT, Calls(later_erf)), "The other GELU from then on."),
    ("tokens roll with calls", lambda: after(NORM, Calls(later_rolled)), "Further with each."),
    ("clamped from the second call", lambda: after(STREAM, Calls(later_clamped)), "Cut at 20 from then on."),
    ("later and positive", lambda: after(STREAM, Calls(later_for_positive)), "Scaled by 1.01 where both hold."),
    ("one image with gradients", lambda: after(LOGITS, batch_of_one_with_gradients), "Scaled by 1.01 there alone."),
    ("two clamps", two_clamps, "One at 40 and one at 60."),
    ("erf and a leak", erf_and_leak, "The erf GELU does not explain the leak."),
    ("fourth call in an MLP", lambda: after(HIDDEN, Calls(fourth_only)), "Doubled at that call alone."),
)


def _case(name: str, make: Callable[[], nn.Module], why: str, verdicts: tuple[Result, ...] = DIFFERENT) -> Case:
    return Case(f"composition: {name}", make, verdicts, why)


CASES = (
    *(_case(*row) for row in _ROWS),
    _case("a gate for later images", lambda: after(STREAM, CountedGate()), "A buffer meets image 1 alone.", NEUTRAL),
)
