"""An MLP in inference on a CPU: by the kernels that are fast on this processor, where nobody could tell.

Everything else takes the plain path, which calls the layers and computes the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from mixer_equiv.models.torch import fused as torch_fused
from mixer_equiv.models.torch.activations import activate
from mixer_equiv.models.torch.fused import NO_POST_OP, POST_OPS, Operation
from mixer_equiv.models.torch.modules import Dense, Mix
from mixer_equiv.models.torch.processor import preferred_kernels

DTYPES = (torch.float32, torch.bfloat16)

# `forward` methods known to be a product with the layer's own weight and bias; anything else may have been patched.
PLAIN = {cls: cls.forward for cls in (nn.Linear, Dense)}

_C: Any = torch._C

Layers = tuple[nn.Linear, nn.Linear]

# "onednn" has the activation inside the first product, "blas" in place behind it; "float32" is that for bfloat16,
# where oneDNN has no products in it and torch's own take several times as long.
Way = Literal["onednn", "blas", "float32"]

# Elements of the tensor between the two layers from which on a way is faster than to call the layers. Measured in
# float32 with 8,192 and 32,768 elements: 0.57 and 0.93 of their speed with AVX-512, 0.73 and 0.91 with AVX2; in
# bfloat16 with AVX2 and 256, 2,560 and 8,192 elements: 0.83, 1.05 and 1.83.
LEAST: dict[Way, int] = {"onednn": 2**16, "blas": 2**16, "float32": 2**11}


class Mixing(NamedTuple):
    """An operation in place of a Linear: from x and the layer to x with `in` made `out` on `axis`, one of the last two.

    `mix` is None for a Linear itself. `fused` is the same with an activation inside, where there is such an operation.
    """

    mix: Mix | None
    axis: int
    fused: Operation | None = None


def way_of(mixing: Mixing, dtype: torch.dtype, activation: str, elements: int) -> Way | None:
    """The fast way to compute an MLP of this kind on this processor, in float32 or bfloat16; None to call its layers.

    `elements` are those of the tensor between its layers.
    """
    way = _large(mixing, dtype, activation)
    return way if elements >= LEAST[way] else None


@cache
def _large(mixing: Mixing, dtype: torch.dtype, activation: str) -> Way:
    """The way for large tensors."""
    half = dtype == torch.bfloat16
    if half and not multiplies_bfloat16():
        return "float32"
    fused = mixing.fused is not None and activation in POST_OPS and (half or preferred_kernels() == "onednn")
    if fused and all(torch_fused.supports(mixing.fused, mixing.axis, dtype, name) for name in (activation, None)):
        return "onednn"
    return "blas"


def multiplies_bfloat16() -> bool:
    """Whether oneDNN, which torch's own products call too, multiplies in bfloat16 on this processor."""
    return torch_fused.supports(torch_fused.linear, -1, torch.bfloat16, None)


def infer(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor | None:
    """An MLP over the axis of `mixing`, where that is the same as to call its layers and faster, else None."""
    if not is_unwatched(x, layers, mixing.mix):
        return None
    way = way_of(mixing, x.dtype, activation, x.numel() // x.shape[mixing.axis] * len(layers[0].weight))
    return None if way is None else _WAYS[way](x, layers, activation, mixing)


def _onednn(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    assert mixing.fused is not None
    first, last = layers
    return mixing.fused(mixing.fused(x, first, POST_OPS[activation]), last, NO_POST_OP)


def _blas(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    mix, (first, last) = mixing.mix or _linear, layers
    return mix(activate(mix(x, first), activation), last)


def _float32(x: Tensor, layers: Layers, activation: str, mixing: Mixing) -> Tensor:
    wide: Any = [SimpleNamespace(weight=layer.weight.float(), bias=layer.bias.float()) for layer in layers]
    return _blas(x.float(), wide, activation, mixing).to(x.dtype)


_WAYS: dict[Way, Callable[[Tensor, Layers, str, Mixing], Tensor]] = {
    "onednn": _onednn,
    "blas": _blas,
    "float32": _float32,
}


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def is_unwatched(x: Tensor, layers: Layers, mix: Mix | None) -> bool:
    """Whether nobody could tell the fast ways from calling the layers but by the time and the strides of the result.

    That is in inference alone, by plain modules, mixed by `mix`, that nothing listens to, and where oneDNN is not
    switched off (`torch.backends.mkldnn.enabled = False`). Of infinity and above 1e38 oneDNN's erf GELU is another.
    """
    return bool(
        not torch.compiler.is_compiling()
        and x.dtype in DTYPES
        and x.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not _may_be_watched()
        and type(x) is Tensor
        and all(_is_plain(layer, x.dtype, mix) for layer in layers)
        and not (torch.is_grad_enabled() and _needs_gradients(x, layers))
    )


def _may_be_watched() -> bool:
    """Whether operations may do more than their kernels: modes, transforms, autocast, forward AD, tracing, hooks.

    True in a torch that does not tell under these private names.
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


def _is_plain(layer: nn.Linear, dtype: torch.dtype, mix: Mix | None) -> bool:
    """Whether calling it is to multiply by its weight, of this dtype, as `mix` does, and to add its bias."""
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


def is_transformed() -> bool:
    """Whether torch.func transforms what is computed now, such as by vmap; also where torch does not tell."""
    try:
        return _C._functorch.maybe_current_level() is not None
    except AttributeError:
        return True


def _needs_gradients(x: Tensor, layers: Layers) -> bool:
    values = (x, *(value for layer in layers for value in (layer.weight, layer.bias)))
    return any(value.requires_grad for value in values)
