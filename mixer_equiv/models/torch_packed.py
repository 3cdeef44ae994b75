"""A Mixer for inference on a CPU, its weights in the order in which oneDNN's matrix products read them.

A weight as torch keeps it is put in that order at every call, which at small batches takes as long as a good part
of the arithmetic. Here it is done once. Each MLP's activation is computed inside its first product, as in
`mixer_equiv.models.torch_fused`, the residual of channel mixing is added inside the last, and the stem is a
product over flattened patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from mixer_equiv.errors import ConfigError, some
from mixer_equiv.models.torch_formulations import ACTIVATIONS, check_images
from mixer_equiv.models.torch_fused import DTYPES, NO_POST_OP, POST_OPS
from mixer_equiv.models.torch_modules import FLATTENED

if TYPE_CHECKING:
    from mixer_equiv.models.torch import MlpBlock, MlpMixer

OWN = (f"{__package__}.torch", f"{__package__}.torch_modules")

_OPS = torch.ops.mkldnn
_REORDER: Callable[..., Tensor] | None = getattr(_OPS, "_reorder_linear_weight", None)


class PackedMixer:
    """What `model` computes in inference, on copies of its weights as they are now.

    It has no parameters, gradients or hooks, and `model` may be deleted; it cannot be copied or saved, as oneDNN's
    weights cannot. It computes in the dtype of its weights, under autocast too. Raises `ConfigError` for a model that
    is not of float32 or bfloat16 on a CPU, of which a part was replaced or has hooks (which may compute its weights, as
    those of pruning do), and for a torch without oneDNN.
    """

    @torch.no_grad()
    def __init__(self, model: MlpMixer) -> None:
        self.config = model.config
        kinds = sorted({f"{value.dtype} on {value.device.type}".removeprefix("torch.") for value in model.parameters()})
        if kinds not in [[f"{dtype} on cpu".removeprefix("torch.")] for dtype in DTYPES]:
            raise ConfigError(f"the model is {' and '.join(kinds)}; weights are packed in float32 or bfloat16 on cpu")
        parts = [(name, part) for name, part in model.named_modules() if ".parametrizations" not in name]
        hooked = [name or "the model" for name, part in parts if part._forward_hooks or part._forward_pre_hooks]
        if hooked:
            raise ConfigError(
                f"hooks on {some(hooked)} would not run; remove them, those of pruning by torch.nn.utils.prune.remove"
            )
        if replaced := [f"{name} is a {type(part).__name__}" for name, part in parts if not _is_known(part)]:
            kinds = [kind.__name__ for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm)]
            raise ConfigError(f"{some(replaced)}; only weights of {', '.join(kinds)} as they are made are packed")
        if not _is_of_patches(model.stem, self.config.patch_hw):
            raise ConfigError(f"stem is {model.stem}; only a convolution of patches, side by side, is packed")
        if _REORDER is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            raise ConfigError(f"weights are packed by oneDNN, which torch {torch.__version__} is built without here")
        self.dtype = model.stem.weight.dtype
        self._stem = Packed(model.stem.weight.flatten(1), model.stem.bias)
        blocks: Iterable[Any] = model.blocks
        self._blocks = [
            (_norm(b.layer_norm_0), _mlp(b.token_mixing), _norm(b.layer_norm_1), _mlp(b.channel_mixing)) for b in blocks
        ]
        self._norm = _norm(model.pre_head_layer_norm)
        self._head = None if model.head is None else Packed(model.head.weight, model.head.bias)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) to logits (batch, classes), or features (batch, hidden) without a head.

        Raises `ValueError` for images of another size or dtype than the weights', or that need gradients.
        """
        check_images(images, self.config)
        differentiated = images.requires_grad or forward_ad._current_level >= 0
        if images.dtype != self.dtype or differentiated:
            found = f"{images.dtype}{' and need gradients' * differentiated}".removeprefix("torch.")
            taken = str(self.dtype).removeprefix("torch.")
            raise ValueError(f"images are {found}; these packed weights take {taken}, and have no gradients")
        ph, pw = self.config.patch_hw
        x = self._stem(rearrange(images, FLATTENED["linear_channels_first"][0], ph=ph, pw=pw))
        for norm_0, (tokens_0, tokens_1), norm_1, (channels_0, channels_1) in self._blocks:
            x = x + tokens_1(tokens_0(norm_0(x).mT)).mT
            x = channels_1(channels_0(norm_1(x)), plus=x)
        x = self._norm(x).mean(dim=1)
        return x if self._head is None else self._head(x)

    def __reduce__(self) -> Any:
        raise TypeError("a PackedMixer cannot be copied or saved; keep the model, and call its packed() anew")


def _is_known(module: nn.Module) -> bool:
    """Whether what it computes is known from its weights, its class and that of what it is part of."""
    kind = parametrize.type_before_parametrizations(module)
    if "forward" in vars(module):
        return False
    if issubclass(kind, nn.LayerNorm) and (module.weight is None or module.bias is None):
        return False
    return kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.ModuleList) or kind.__module__ in OWN


def _is_of_patches(stem: nn.Conv2d, patch_hw: tuple[int, int]) -> bool:
    shapes = stem.kernel_size, stem.stride, stem.dilation, stem.padding, stem.groups
    return shapes == (patch_hw, patch_hw, (1, 1), (0, 0), 1)


class Packed:
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
            return _OPS._linear_pointwise.binary(x, plus, self.weight, self.bias, "add")
        name, way = self.post_op
        x = _OPS._linear_pointwise(x, self.weight, self.bias, name, [], way)
        return x if self.after is None else self.after(x)


def _mlp(block: MlpBlock) -> tuple[Packed, Packed]:
    first, last = block.dense_0, block.dense_1
    return Packed(first.weight, first.bias, block.activation), Packed(last.weight, last.bias)


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    weight, bias = (value.detach().clone() for value in (norm.weight, norm.bias))
    return partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=weight, bias=bias, eps=norm.eps)
