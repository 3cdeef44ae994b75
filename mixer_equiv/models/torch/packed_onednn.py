"""A packed Mixer by oneDNN: each activation inside the product before it, and the residual of channel mixing too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.fused import NO_POST_OP, POST_OPS, few_numbers
from mixer_equiv.models.torch.modules import FLATTENED, TorchMixer, TorchMlp, copied_norm
from mixer_equiv.models.torch.processor import agrees

# None in a torch that does not have them under these names.
_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_REORDER: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)


class OneDnnMixer:
    """Images (batch, channels, height, width) of the weights' dtype to logits."""

    def __init__(self, model: TorchMixer) -> None:
        self.patch_hw = model.config.patch_hw
        self.stem = PackedLinear(model.stem.weight.flatten(1), model.stem.bias)
        blocks: Iterable[Any] = model.blocks
        self.blocks = [
            (copied_norm(b.layer_norm_0), _mlp(b.token_mixing), copied_norm(b.layer_norm_1), _mlp(b.channel_mixing))
            for b in blocks
        ]
        self.norm = copied_norm(model.pre_head_layer_norm)
        self.head = None if model.head is None else PackedLinear(model.head.weight, model.head.bias)

    def __call__(self, images: Tensor) -> Tensor:
        ph, pw = self.patch_hw
        x = self.stem(rearrange(images, FLATTENED["linear_channels_first"][0], ph=ph, pw=pw))
        for norm_0, (tokens_0, tokens_1), norm_1, (channels_0, channels_1) in self.blocks:
            x = x + tokens_1(tokens_0(norm_0(x).mT)).mT
            x = channels_1(channels_0(norm_1(x)), plus=x)
        x = self.norm(x).mean(dim=1)
        return x if self.head is None else self.head(x)


class PackedLinear:
    """A Linear of this weight (out, in) and bias, and the activation behind it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> None:
        assert _REORDER is not None
        self.weight = _REORDER(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach().clone()
        self.post_op = POST_OPS.get(activation, NO_POST_OP) if activation else NO_POST_OP
        self.after = ACTIVATIONS[activation] if activation and activation not in POST_OPS else None

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(..., in) to (..., out); `plus`, of that shape, is added."""
        if plus is not None:
            return _LINEAR.binary(x, plus, self.weight, self.bias, "add")
        name, way = self.post_op
        x = _LINEAR(x, self.weight, self.bias, name, [], way)
        return x if self.after is None else self.after(x)


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of this dtype here: tried once, with each activation and a sum."""
    x, layer = few_numbers()
    product = F.linear(x, layer.weight, layer.bias)

    def multiplied(activation: str | None = None, plus: Tensor | None = None) -> Tensor:
        return PackedLinear(layer.weight.to(dtype), layer.bias.to(dtype), activation)(x.to(dtype), plus)

    sums = agrees(lambda: multiplied(plus=product.to(dtype)), 2 * product)
    return sums and all(agrees(partial(multiplied, name), ACTIVATIONS[name](product)) for name in POST_OPS)


def _mlp(block: TorchMlp) -> tuple[PackedLinear, PackedLinear]:
    first, last = block.dense_0, block.dense_1
    return PackedLinear(first.weight, first.bias, block.activation), PackedLinear(last.weight, last.bias)
