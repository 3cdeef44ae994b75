"""Mixers that change their weights, or decide on them, where those are larger or smaller than any that are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.cases import DIFFERENT, Case
from tests.soundness.plain_torch import replace

Function = Callable[[Tensor], Tensor]


class OnWeight(nn.Module):
    """A linear layer with `function` of its weight."""

    def __init__(self, function: Function, layer: nn.Linear) -> None:
        super().__init__()
        self.function, self.weight, self.bias = function, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.function(self.weight), self.bias)


def halved_if_large(w: Tensor) -> Tensor:
    if w.norm() > 1e6:
        return w / 2
    return w


def zero_if_small(w: Tensor) -> Tensor:
    return w if (w.abs() > 1e-12).all() else torch.zeros_like(w)


def zero_where_small(w: Tensor) -> Tensor:
    w = w.clone()
    w[(w.abs() < 1e-12).nonzero(as_tuple=True)] = 0
    return w


# Name, the function of a weight, the layer.
_ROWS: tuple[tuple[str, Function, str], ...] = (
    ("clamped", lambda w: w.clamp(-1e6, 1e6), "head"),
    ("clamped from above", lambda w: w.clamp(max=1e6), "blocks.1.channels.fc1"),
    ("norm clipped", lambda w: w * (1e6 / w.norm()).clamp(max=1), "head"),
    ("norms of rows clipped", lambda w: w * (1e6 / w.norm(dim=1, keepdim=True)).clamp(max=1), "blocks.0.tokens.fc2"),
    ("pruned by where", lambda w: torch.where(w.abs() < 1e-12, 0.0, w), "blocks.1.tokens.fc1"),
    ("pruned by a mask", lambda w: w * (w.abs() >= 1e-12), "head"),
    ("pruned by hardshrink", lambda w: F.hardshrink(w, 1e-12), "blocks.2.channels.fc2"),
    ("pruned by masked_fill", lambda w: w.masked_fill(w.abs() < 1e-12, 0), "head"),
    ("pruned at indices", zero_where_small, "head"),
    ("NaN replaced", torch.nan_to_num, "head"),
    ("halved by a decision", halved_if_large, "head"),
    ("zero by a decision", zero_if_small, "blocks.1.channels.fc1"),
)

CASES = tuple(
    Case(
        f"weight: {name}",
        functools.partial(replace, path, functools.partial(OnWeight, function)),
        (*DIFFERENT, "equivalent"),
        "No weight that is drawn shows it, and it can be named.",
        words=("weights.py",),
    )
    for name, function, path in _ROWS
)
