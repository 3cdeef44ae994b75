"""oneDNN's products and convolutions with an activation inside, for inference on a CPU.

The tanh GELU costs eager torch a pass over the widest tensor of a block, and more arithmetic than the erf one. oneDNN
applies it to each tile of a result while the tile is in cache. `torch.compile` uses the same operations. They have no
gradients, exist in float32 and bfloat16 alone, and are tried once before they are used (`supports`). This module must
not decide when they are used. Start reading at `linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.kernel_choice import agrees

# oneDNN's name of each activation, and of its approximation. ReLU is left out, as oneDNN's turns nan into zero.
POST_OPS = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "silu": ("swish", "")}

NO_POST_OP = ("none", "")
PostOp = tuple[str, str]

# From an input, the layer whose parameters are used, and the operation after the product.
FusedOperation = Callable[[Tensor, nn.Linear, PostOp], Tensor]

# None in a torch that lacks these names.
_LINEAR_POINTWISE: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_CONVOLUTION_POINTWISE: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


@cache
def supports(operation: FusedOperation, axis: int, dtype: torch.dtype, activation: str | None) -> bool:
    """Whether `operation` on this axis gives the right numbers on this processor, with `activation` inside.

    It is tried on a few numbers, once in a process.
    """
    x, layer = trial_numbers()
    expected = F.linear(x, layer.weight, layer.bias)
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    cast: Any = SimpleNamespace(weight=layer.weight.to(dtype), bias=layer.bias.to(dtype))
    cast_input = x.to(dtype) if axis == -1 else x.mT.to(dtype)
    post_op = POST_OPS[activation] if activation else NO_POST_OP
    return agrees(lambda: operation(cast_input, cast, post_op), expected if axis == -1 else expected.mT)


def trial_numbers() -> tuple[Tensor, Any]:
    """An input (2, 3, 4) in float64, and a layer with weight (5, 4) and bias (5)."""
    numbers = torch.linspace(-2, 2, 49, dtype=torch.float64, device="cpu")
    return numbers[:24].view(2, 3, 4), SimpleNamespace(weight=numbers[24:44].view(5, 4), bias=numbers[44:])


def linear(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(..., in) to (..., out); call it only where `supports` says so."""
    assert _LINEAR_POINTWISE is not None
    return _LINEAR_POINTWISE(x, layer.weight, layer.bias, post_op[0], [], post_op[1])


def shared(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, channels, in) to (batch, channels, out), each channel an image of one row.

    Call it only where `supports` says so.
    """
    assert _CONVOLUTION_POINTWISE is not None
    batch, channels, width = x.shape
    # An image of one channel is both channels-first and channels-last; these strides save a copy of the result.
    rows = x.contiguous().as_strided((batch * channels, 1, 1, width), (width, 1, width, 1))
    weight = layer.weight[:, None, None]
    out = _CONVOLUTION_POINTWISE(rows, weight, layer.bias, [0, 0], [1, 1], [1, 1], 1, post_op[0], [], post_op[1])
    return out.view(batch, channels, len(weight))


def pointwise(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, in, length) to (batch, out, length), each position an image of one row.

    Given a pixel of many channels instead, oneDNN would reorder the weights in each call. Call it only where `supports`
    says so.
    """
    return shared(x.transpose(1, 2), layer, post_op).transpose(1, 2)
