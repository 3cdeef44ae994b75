"""Products and convolutions of oneDNN with an activation inside: for inference on a CPU.

The tanh GELU costs eager torch a pass over the widest tensor of a block, and more arithmetic than the
erf one. oneDNN applies it to each tile of a result while that is in cache. These are the operations that
`torch.compile` uses too; they have no gradients, and are of float32 and bfloat16 alone, so that everything else
takes the plain path, which computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from mixer_equiv.models.torch_modules import Dense, Mix

# What oneDNN calls each activation, and how it is to approximate it. Its ReLU makes a zero of nan.
POST_OPS = {"gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "silu": ("swish", "")}
DTYPES = (torch.float32, torch.bfloat16)

# What it is to call a layer whose weights are multiplied by, unless somebody made it another thing.
PLAIN = {cls: cls.forward for cls in (nn.Linear, Dense)}

NO_POST_OP = ("none", "")
PostOp = tuple[str, str]

_LINEAR: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_CONVOLUTION: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def can_fuse(x: Tensor, layers: tuple[nn.Linear, nn.Linear], activation: str, mix: Mix | None) -> bool:
    """Whether nobody could tell the fused path from the plain one but by its time and the strides of its result.

    That is in inference alone, by plain modules, mixed by `mix`, that nothing listens to, and where oneDNN is not
    switched off (`torch.backends.mkldnn.enabled = False`). Of infinity and above 1e38 oneDNN's erf GELU is another.
    """
    return bool(
        _LINEAR is not None
        and _CONVOLUTION is not None
        and not torch.compiler.is_compiling()
        and activation in POST_OPS
        and x.dtype in DTYPES
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not _is_watched()
        and type(x) is Tensor
        and all(_is_plain(layer, x.dtype, mix) for layer in layers)
        and not (torch.is_grad_enabled() and _needs_gradients(x, layers))
    )


def _is_watched() -> bool:
    """Whether operations do more than their kernels: modes, transforms, autocast, forward AD, tracing, hooks on all."""
    c: Any = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._functorch.maybe_current_level() is not None
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or c._get_tracing_state() is not None
        or modules._global_forward_hooks
        or modules._global_forward_pre_hooks
    )


def _is_plain(layer: nn.Linear, dtype: torch.dtype, mix: Mix | None) -> bool:
    """Whether to call it is to multiply by its weight, of this dtype, as `mix` does, and to add its bias."""
    own, weight, bias = vars(layer), layer.weight, layer.bias
    return (
        type(layer).forward is PLAIN.get(type(layer))
        and "forward" not in own
        and own.get("mix") is mix
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and all(
            type(value) in (Tensor, nn.Parameter)
            and value.dtype == dtype
            and value.device.type == "cpu"
            and value.layout is torch.strided
            for value in (weight, bias)
        )
        # oneDNN reads the bias from where it begins, whatever its shape and strides.
        and bias.shape == weight.shape[:1]
        and bias.is_contiguous()
    )


def _needs_gradients(x: Tensor, layers: tuple[nn.Linear, nn.Linear]) -> bool:
    values = (x, *(value for layer in layers for value in (layer.weight, layer.bias)))
    return any(value.requires_grad for value in values)


def linear(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(..., in) to (..., out), where `can_fuse` says so."""
    assert _LINEAR is not None
    return _LINEAR(x, layer.weight, layer.bias, post_op[0], [], post_op[1])


def shared(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, channels, in) to (batch, channels, out), a channel a picture of one row, where `can_fuse` says so."""
    assert _CONVOLUTION is not None
    batch, channels, width = x.shape
    # A picture of one channel is in either order of torch; only the strides of channels-last save a copy of the result.
    rows = x.contiguous().as_strided((batch * channels, 1, 1, width), (width, 1, width, 1))
    weight = layer.weight[:, None, None]
    out = _CONVOLUTION(rows, weight, layer.bias, [0, 0], [1, 1], [1, 1], 1, post_op[0], [], post_op[1])
    return out.view(batch, channels, len(weight))


def pointwise(x: Tensor, layer: nn.Linear, post_op: PostOp) -> Tensor:
    """(batch, in, length) to (batch, out, length), each position a picture of one row, where `can_fuse` says so.

    As a pixel of many channels oneDNN would put the weights into another order in each call.
    """
    return shared(x.transpose(1, 2), layer, post_op).transpose(1, 2)
