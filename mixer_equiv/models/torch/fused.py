"""Products and convolutions of oneDNN with an activation inside: for inference on a CPU.

The tanh GELU costs eager torch a pass over the widest tensor of a block, and more arithmetic than the
erf one. oneDNN applies it to each tile of a result while that is in cache. These are the operations that
`torch.compile` uses too; they have no gradients, and are of float32 and bfloat16 alone. Whether they work on this
processor is tried (`supports`).
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
from mixer_equiv.models.torch.processor import agrees

# What oneDNN calls each activation, and how it is to approximate it. Its ReLU makes a zero of nan.
POST_OPS = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "silu": ("swish", "")}

NO_POST_OP = ("none", "")
PostOp = tuple[str, str]

# An input, the layer whose parameters are used, and what follows the product.
Operation = Callable[[Tensor, nn.Linear, PostOp], Tensor]

# None in a torch that does not have them under these names.
_LINEAR: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_CONVOLUTION: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


@cache
def supports(operation: Operation, axis: int, dtype: torch.dtype, activation: str | None) -> bool:
    """Whether `operation` on this axis computes what it should on this processor, with `activation` inside.

    A product of a few numbers is tried, once in a process.
    """
    x, layer = few_numbers()
    expected = F.linear(x, layer.weight, layer.bias)
    if activation is not None:
        expected = ACTIVATIONS[activation](expected)
    given: Any = SimpleNamespace(weight=layer.weight.to(dtype), bias=layer.bias.to(dtype))
    of_input = x.to(dtype) if axis == -1 else x.mT.to(dtype)
    post_op = POST_OPS[activation] if activation else NO_POST_OP
    return agrees(lambda: operation(of_input, given, post_op), expected if axis == -1 else expected.mT)


def few_numbers() -> tuple[Tensor, Any]:
    """An input (2, 3, 4) in float64, and the weight (5, 4) and bias (5) of a layer."""
    numbers = torch.linspace(-2, 2, 49, dtype=torch.float64, device="cpu")
    return numbers[:24].view(2, 3, 4), SimpleNamespace(weight=numbers[24:44].view(5, 4), bias=numbers[44:])


def linear(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(..., in) to (..., out), where `supports` says so."""
    assert _LINEAR is not None
    return _LINEAR(x, layer.weight, layer.bias, post_op[0], [], post_op[1])


def shared(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, channels, in) to (batch, channels, out), a channel a picture of one row, where `supports` says so."""
    assert _CONVOLUTION is not None
    batch, channels, width = x.shape
    # A picture of one channel is in either order of torch; only the strides of channels-last save a copy of the result.
    rows = x.contiguous().as_strided((batch * channels, 1, 1, width), (width, 1, width, 1))
    weight = layer.weight[:, None, None]
    out = _CONVOLUTION(rows, weight, layer.bias, [0, 0], [1, 1], [1, 1], 1, post_op[0], [], post_op[1])
    return out.view(batch, channels, len(weight))


def pointwise(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, in, length) to (batch, out, length), each position a picture of one row, where `supports` says so.

    As a pixel of many channels oneDNN would put the weights into another order in each call.
    """
    return shared(x.transpose(1, 2), layer, post_op).transpose(1, 2)
