"""The activations of a `MixerConfig` in torch, and `activate`, which applies them in place where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}

# Elements for each thread that stay in the second-level cache between two passes over them.
CACHED_ELEMENTS = 2**17

# x / (1 + exp(-2 u)) is 0.5 x (1 + tanh(u)), with u = sqrt(2 / pi) (x + 0.044715 x^3).
_SLOPE, _CUBIC = -2 * math.sqrt(2 / math.pi), 0.044715
_MINUS_TWO_U = torch.tensor(_SLOPE, dtype=torch.float32, device="cpu")


def activate(x: Tensor, activation: str, bias: Tensor | None = None) -> Tensor:
    """`x` after `activation`, perhaps in the memory of `x`, to which nobody else may hold a reference.

    `bias` is added first. For a matrix `x` (rows, width) it is (width) or (rows, 1).
    """
    if activation == "gelu_tanh" and x.dtype == torch.float32 and x.is_contiguous():
        return _gelu_tanh(x, bias)
    return ACTIVATIONS[activation](x if bias is None else x.add_(bias))


def _gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    """The tanh GELU in place, piece by piece. torch's own evaluates tanh, and takes twice as long as these passes."""
    rows = x.view(-1, 1) if bias is None else x
    step = max(1, CACHED_ELEMENTS * torch.get_num_threads() // rows.shape[1])
    buffer = torch.empty_like(rows[:step])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if bias is not None:
            part.add_(bias if bias.ndim == 1 else bias[start : start + step])
        power = torch.addcmul(_MINUS_TWO_U, part, part, value=_SLOPE * _CUBIC, out=buffer[: len(part)])
        part.div_(power.mul_(part).exp_().add_(1))
    return x
