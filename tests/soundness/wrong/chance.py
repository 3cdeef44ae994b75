"""Mixers that draw random numbers in evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import ACT, HIDDEN, LOGITS, NORM, STREAM, Block, Mixer, after, before


class AlwaysTraining(nn.Dropout):
    """Dropout that cannot be turned off."""

    def train(self, mode: bool = True) -> nn.Dropout:
        return super().train(True)


class DropPath(Block):
    """The branch of some images is left out, as in training with stochastic depth."""

    keep = 0.9

    def mix_channels(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1) < self.keep
        return x + self.channels(self.norm2(x)) * kept / self.keep


class RarelySkipped(Block):
    """The whole block is left out in one of four calls."""

    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.25 else super().forward(x)


def noise(size: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + size * torch.randn_like(x)


def own_generator() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return after(LOGITS, lambda x: x + 1e-9 * torch.randn(x.shape, generator=generator, dtype=x.dtype))


# Name, what makes the model, why it is wrong.
_ROWS: tuple[tuple[str, Callable[[], nn.Module], str], ...] = (
    ("dropout of 1e-9", lambda: after(HIDDEN, lambda x: F.dropout(x, 1e-9)), "It scales by 1 / (1 - 1e-9)."),
    ("dropout of 1e-4", lambda: after(ACT, lambda x: F.dropout(x, 1e-4)), "It drops and scales."),
    ("dropout of a tenth", lambda: after(STREAM, lambda x: F.dropout(x, 0.1)), "It drops and scales."),
    ("dropout that stays in train mode", lambda: after(ACT, AlwaysTraining(0.1)), "`eval()` does not reach it."),
    ("alpha dropout", lambda: after(NORM, lambda x: F.alpha_dropout(x, 0.01, True)), "It replaces and scales."),
    ("feature dropout", lambda: after(NORM, lambda x: F.dropout1d(x, 0.05)), "It drops tokens."),
    ("stochastic depth", lambda: Mixer(block=DropPath), "Branches are left out."),
    ("a block left out at times", lambda: Mixer(block=RarelySkipped), "Python's own random numbers decide."),
    ("noise of 1e-9 on logits", lambda: after(LOGITS, noise(1e-9)), "No two calls agree."),
    ("noise of 1e-6 in the stream", lambda: after(STREAM, noise(1e-6)), "No two calls agree."),
    ("noise on images", lambda: before("stem", noise(1e-3)), "No two calls agree."),
    ("noise of NumPy", lambda: after(LOGITS, lambda x: x * (1 + 1e-6 * np.random.rand())), "No two calls agree."),
    ("noise of its own generator", own_generator, "No two calls agree."),
    ("the time of day", lambda: after(LOGITS, lambda x: x * (1 + time.time() % 1e-3)), "No two calls agree."),
)

CASES = tuple(Case(f"chance: {name}", make, DIFFERENT, why) for name, make, why in _ROWS)
