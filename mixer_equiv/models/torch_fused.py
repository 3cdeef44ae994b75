"""Linear, activation, Linear in two calls of oneDNN, the activation inside the first: for inference on a CPU.

The tanh GELU costs eager torch a pass over the widest tensor of a block, and more arithmetic than the
erf one. oneDNN's matrix product applies it to each tile while that is in cache. This is the operation that
`torch.compile` uses too; it has no gradient, and is of float32 and bfloat16 alone, so that everything else
takes the plain path, which computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

# What oneDNN calls each activation, and how it is to approximate it.
POST_OPS = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "relu": ("relu", ""), "silu": ("swish", "")}
DTYPES = (torch.float32, torch.bfloat16)

_LINEAR: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def can_fuse(x: Tensor, layers: tuple[nn.Linear, nn.Linear], activation: str) -> bool:
    """Whether nobody could tell `fused` from the plain path but by the time that it takes.

    That is in inference alone, by plain modules that nothing listens to, and where oneDNN is not switched
    off (`torch.backends.mkldnn.enabled = False`).
    """
    return bool(
        _LINEAR is not None
        and not torch.compiler.is_compiling()
        and activation in POST_OPS
        and x.dtype in DTYPES
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not _is_watched()
        and type(x) is Tensor
        and all(_is_plain(layer, x.dtype) for layer in layers)
        and not (torch.is_grad_enabled() and _needs_gradients(x, layers))
    )


def _is_watched() -> bool:
    """Whether operations do not go straight to their kernels: modes, transforms, autocast, tracing, hooks on all."""
    c: Any = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._functorch.maybe_current_level() is not None
        or torch.is_autocast_enabled("cpu")
        or c._get_tracing_state() is not None
        or modules._global_forward_hooks
        or modules._global_forward_pre_hooks
    )


def _is_plain(layer: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether to call it is to multiply by its weight, of this dtype, and to add its bias."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and all(
            type(value) in (Tensor, nn.Parameter) and value.dtype == dtype and value.device.type == "cpu"
            for value in (layer.weight, layer.bias)
        )
    )


def _needs_gradients(x: Tensor, layers: tuple[nn.Linear, nn.Linear]) -> bool:
    values = (x, *(value for layer in layers for value in (layer.weight, layer.bias)))
    return any(value.requires_grad for value in values)


def fused(x: Tensor, layers: tuple[nn.Linear, nn.Linear], activation: str) -> Tensor:
    """(..., in) to (..., in), where `can_fuse` says so."""
    assert _LINEAR is not None
    first, last = layers
    x = _LINEAR(x, first.weight, first.bias, POST_OPS[activation][0], [], POST_OPS[activation][1])
    return _LINEAR(x, last.weight, last.bias, "none", [], "")
