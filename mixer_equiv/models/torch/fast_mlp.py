"""Faster kernels for an MLP in inference on a CPU, used only where nobody could tell the difference.

`infer` is called by `MlpBlock.forward` before its layers. It must not change what they compute, nor know the model
around them. Start reading at `infer`, then `is_unobserved`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from mixer_equiv.models.torch import fused_onednn
from mixer_equiv.models.torch.activations import activate
from mixer_equiv.models.torch.fused_onednn import NO_POST_OP, POST_OPS
from mixer_equiv.models.torch.kernel_choice import preferred_kernels
from mixer_equiv.models.torch.replacement_layers import Mixing, MixingLinear

FAST_DTYPES = (torch.float32, torch.bfloat16)

# `forward` methods known to be a plain product with the layer's own weight and bias. Anything else may be patched.
KNOWN_FORWARDS = {cls: cls.forward for cls in (nn.Linear, MixingLinear)}

_C: Any = torch._C

Layers = tuple[nn.Linear, nn.Linear]

# "onednn" computes the activation inside the first product, "blas" in place after it. "float32" is "blas" for a
# bfloat16 MLP, on a processor where oneDNN has no bfloat16 products and torch's own take several times as long.
FastPath = Literal["onednn", "blas", "float32"]

# Elements of the tensor between the two layers from which on a fast path is faster than to call the layers. Measured in
# float32 with 8,192 and 32,768 elements: 0.57 and 0.93 of their speed with AVX-512, 0.73 and 0.91 with AVX2; in
# bfloat16 with AVX2 and 256, 2,560 and 8,192 elements: 0.83, 1.05 and 1.83.
MIN_ELEMENTS: dict[FastPath, int] = {"onednn": 2**16, "blas": 2**16, "float32": 2**11}


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


# The mixing of an nn.Linear itself.
LINEAR = Mixing(_linear, -1, fused_onednn.linear)


def infer(x: Tensor, layers: Layers, activation: str) -> Tensor | None:
    """The MLP of two layers over the last axis of `x`, where a fast path computes the same; None to call the layers."""
    if not is_unobserved(x, layers):
        return None
    mixing = _mixing_of(layers[0])
    path = choose_path(mixing, x.dtype, activation, x.numel() // x.shape[-1] * len(layers[0].weight))
    if path is None:
        return None
    if mixing.axis == -1:
        return _RUN[path](x, layers, activation, mixing)
    return _RUN[path](x.transpose(1, 2), layers, activation, mixing).transpose(1, 2)


def choose_path(mixing: Mixing, dtype: torch.dtype, activation: str, elements: int) -> FastPath | None:
    """The fast path for such an MLP on this processor, in float32 or bfloat16; None where its layers are faster.

    `elements` is the size of the tensor between the two layers.
    """
    path = _path_of_large(mixing, dtype, activation)
    return path if elements >= MIN_ELEMENTS[path] else None


@cache
def _path_of_large(mixing: Mixing, dtype: torch.dtype, activation: str) -> FastPath:
    """The fast path of a large MLP."""
    half = dtype == torch.bfloat16
    if half and not multiplies_bfloat16():
        return "float32"
    fused = mixing.fused is not None and activation in POST_OPS and (half or preferred_kernels() == "onednn")
    if fused and all(fused_onednn.supports(mixing.fused, mixing.axis, dtype, name) for name in (activation, None)):
        return "onednn"
    return "blas"


def multiplies_bfloat16() -> bool:
    """Whether oneDNN, which torch's own products call too, multiplies in bfloat16 on this processor."""
    return fused_onednn.supports(fused_onednn.linear, -1, torch.bfloat16, None)


def _run_onednn(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    assert mixing.fused is not None
    first, last = layers
    return mixing.fused(mixing.fused(x, first, POST_OPS[activation]), last, NO_POST_OP)


def _run_blas(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    first, last = layers
    return mixing.operation(activate(mixing.operation(x, first), activation), last)


def _run_float32(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    wide: Any = [SimpleNamespace(weight=layer.weight.float(), bias=layer.bias.float()) for layer in layers]
    return _run_blas(x.float(), wide, activation, mixing).to(x.dtype)


# Each takes `x` with the numbers to be mixed on the mixing's own axis.
_RUN: dict[FastPath, Callable[[Tensor, Layers, str, Mixing], Tensor]] = {
    "onednn": _run_onednn,
    "blas": _run_blas,
    "float32": _run_float32,
}


def is_unobserved(x: Tensor, layers: Layers) -> bool:
    """Whether a fast path differs from calling the layers only in time and in the strides of the result.

    This holds in inference alone, for plain layers of one mixing without hooks, and only while oneDNN is not switched
    off (`torch.backends.mkldnn.enabled = False`). oneDNN's erf GELU differs at infinity and above 1e38.
    """
    return bool(
        not torch.compiler.is_compiling()
        and x.dtype in FAST_DTYPES
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not _may_be_observed()
        and type(x) is Tensor
        and all(_is_plain(layer, x.dtype) for layer in layers)
        and _mixing_of(layers[0]) is _mixing_of(layers[1])
        and not (torch.is_grad_enabled() and _needs_gradients(x, layers))
    )


def _may_be_observed() -> bool:
    """Whether operations may do more than run their kernels: modes, transforms, autocast, forward AD, tracing, hooks.

    True in a torch that does not tell, because it lacks these private names.
    """
    try:
        return bool(
            _C._len_torch_dispatch_stack()
            or _C._len_torch_function_stack()
            or is_transformed()
            or torch.is_autocast_enabled("cpu")
            or forward_ad._current_level >= 0
            or _C._get_tracing_state() is not None
            or modules._global_forward_hooks
            or modules._global_forward_pre_hooks
        )
    except AttributeError:
        return True


def _is_plain(layer: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether calling the layer does no more than multiply by its weight, of this dtype, and add its bias."""
    weight, bias = layer.weight, layer.bias
    return (
        type(layer).forward is KNOWN_FORWARDS.get(type(layer))
        and "forward" not in vars(layer)
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


def _mixing_of(layer: nn.Linear) -> Mixing:
    return layer.mixing if isinstance(layer, MixingLinear) else LINEAR


def is_transformed() -> bool:
    """Whether torch.func transforms the current computation, for example by vmap; True where torch does not tell."""
    try:
        return _C._functorch.maybe_current_level() is not None
    except AttributeError:
        return True


def _needs_gradients(x: Tensor, layers: Layers) -> bool:
    values = (x, *(value for layer in layers for value in (layer.weight, layer.bias)))
    return any(value.requires_grad for value in values)
