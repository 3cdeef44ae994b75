"""A packed Mixer by oneDNN, which computes the activations and the residual of channel mixing inside its products.

Start reading at `OneDnnMixer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.fused_onednn import NO_POST_OP, POST_OPS, trial_numbers
from mixer_equiv.models.torch.kernel_choice import agrees
from mixer_equiv.models.torch.protocols import MixerParts, MlpParts, copy_norm
from mixer_equiv.models.torch.replacement_layers import PATCH_PATTERNS

# None in a torch that lacks these names.
_LINEAR_POINTWISE: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_REORDER_LINEAR_WEIGHT: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)


class OneDnnMixer:
    """A function from images (batch, channels, height, width) to logits, both in the dtype of the weights."""

    def __init__(self, model: MixerParts) -> None:
        self.patch_hw = model.config.patch_hw
        self.stem = PackedLinear(model.stem.weight.flatten(1), model.stem.bias)
        blocks: Iterable[Any] = model.blocks
        self.blocks = [
            (copy_norm(b.layer_norm_0), _mlp(b.token_mixing), copy_norm(b.layer_norm_1), _mlp(b.channel_mixing))
            for b in blocks
        ]
        self.norm = copy_norm(model.pre_head_layer_norm)
        self.head = None if model.head is None else PackedLinear(model.head.weight, model.head.bias)

    def __call__(self, images: Tensor) -> Tensor:
        ph, pw = self.patch_hw
        x = self.stem(rearrange(images, PATCH_PATTERNS["linear_channels_first"][0], ph=ph, pw=pw))
        for norm_0, (tokens_0, tokens_1), norm_1, (channels_0, channels_1) in self.blocks:
            x = x + tokens_1(tokens_0(norm_0(x).mT)).mT
            x = channels_1(channels_0(norm_1(x)), plus=x)
        x = self.norm(x).mean(dim=1)
        return x if self.head is None else self.head(x)


class PackedLinear:
    """A Linear with this weight (out, in) and bias, followed by an activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> None:
        assert _REORDER_LINEAR_WEIGHT is not None
        self.weight = _REORDER_LINEAR_WEIGHT(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach().clone()
        self.post_op = POST_OPS.get(activation, NO_POST_OP) if activation else NO_POST_OP
        self.after = ACTIVATIONS[activation] if activation and activation not in POST_OPS else None

    def __call__(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(..., in) to (..., out); `plus` is added to the result and has its shape."""
        if plus is not None:
            return _LINEAR_POINTWISE.binary(x, plus, self.weight, self.bias, "add")
        name, approximation = self.post_op
        x = _LINEAR_POINTWISE(x, self.weight, self.bias, name, [], approximation)
        return x if self.after is None else self.after(x)


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of this dtype on this processor.

    It is tried on a few numbers with each activation and with a sum, once in a process.
    """
    x, layer = trial_numbers()
    product = F.linear(x, layer.weight, layer.bias)

    def multiplied(activation: str | None = None, plus: Tensor | None = None) -> Tensor:
        return PackedLinear(layer.weight.to(dtype), layer.bias.to(dtype), activation)(x.to(dtype), plus)

    sums = agrees(lambda: multiplied(plus=product.to(dtype)), 2 * product)
    return sums and all(agrees(partial(multiplied, name), ACTIVATIONS[name](product)) for name in POST_OPS)


def _mlp(block: MlpParts) -> tuple[PackedLinear, PackedLinear]:
    first, last = block.dense_0, block.dense_1
    return PackedLinear(first.weight, first.bias, block.activation), PackedLinear(last.weight, last.bias)
