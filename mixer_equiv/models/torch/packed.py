"""A Mixer for inference on a CPU, with its weights in the order in which this processor's matrix products read them.

torch reorders a weight at every call, which at small batches takes as long as a good part of the arithmetic. Here that
is done once, by `packed_onednn.py` or by `packed_blas.py`. This module must not know the model's class, which imports
it. Start reading at `PackedMixer`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from mixer_equiv.errors import ConfigError, summarize
from mixer_equiv.models.torch import replacement_layers
from mixer_equiv.models.torch.fast_mlp import FAST_DTYPES
from mixer_equiv.models.torch.kernel_choice import KERNELS, Kernels, instruction_set, preferred_kernels
from mixer_equiv.models.torch.packed_blas import BlasMixer, product
from mixer_equiv.models.torch.packed_onednn import OneDnnMixer, PackedLinear, packs
from mixer_equiv.models.torch.protocols import MixerParts, check_images

# Modules of this package whose classes can be packed.
PACKABLE_MODULES = (f"{__package__}.model", replacement_layers.__name__)


class PackedMixer:
    """The function that `model` computes in inference, on copies of its weights as they are now.

    `kernels` names the matrix products. "onednn": oneDNN packs the weights in their own dtype, and computes the
    activation inside the products. "blas": the weights are transposed copies in float32 for torch's own products, which
    write into memory that is used again, and the activation is computed in place; a bfloat16 model is computed in
    float32 and its logits are rounded. The default is "onednn" where that is fast
    (`mixer_equiv.models.torch.kernel_choice`), and for bfloat16 wherever oneDNN has products in it, unless oneDNN is
    switched off (`torch.backends.mkldnn.enabled = False`).

    It has no parameters, gradients or hooks, and `model` may be deleted. It cannot be copied or saved, because oneDNN's
    weights cannot. It computes in the dtype of its weights, under autocast too. Raises `ConfigError` for a model that
    is not in float32 or bfloat16 on a CPU, for a model with a replaced part or with hooks (which may compute its
    weights, as those of pruning do), and for `kernels` that are unknown or do not work on this processor.
    """

    @torch.no_grad()
    def __init__(self, model: MixerParts, kernels: Kernels | None = None) -> None:
        self.config = model.config
        kinds = sorted({f"{value.dtype} on {value.device.type}".removeprefix("torch.") for value in model.parameters()})
        if kinds not in [[f"{dtype} on cpu".removeprefix("torch.")] for dtype in FAST_DTYPES]:
            raise ConfigError(f"the model is {' and '.join(kinds)}; weights are packed in float32 or bfloat16 on cpu")
        parts = [(name, part) for name, part in model.named_modules() if ".parametrizations" not in name]
        hooked = [name or "the model" for name, part in parts if part._forward_hooks or part._forward_pre_hooks]
        if hooked:
            raise ConfigError(
                f"hooks on {summarize(hooked)} would not run; remove them, "
                "those of pruning by torch.nn.utils.prune.remove"
            )
        if replaced := [f"{name} is a {type(part).__name__}" for name, part in parts if not _is_known(part)]:
            kinds = [kind.__name__ for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm)]
            raise ConfigError(f"{summarize(replaced)}; only weights of {', '.join(kinds)} as they are made are packed")
        if not _is_of_patches(model.stem, self.config.patch_hw):
            raise ConfigError(f"stem is {model.stem}; only a convolution of patches, side by side, is packed")
        self.dtype = model.stem.weight.dtype
        self.kernels = kernels_for(self.dtype, kernels)
        self._run = _RUNS[self.kernels](model)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) to logits (batch, classes), or features (batch, hidden) without a head.

        Raises `ValueError` for images of another size than the config's, of another dtype than the weights', or that
        need gradients.
        """
        check_images(images, self.config)
        tangent = forward_ad.unpack_dual(images).tangent  # type: ignore[no-untyped-call]
        differentiated = images.requires_grad or tangent is not None
        if images.dtype != self.dtype or differentiated:
            found = f"{images.dtype}{' and need gradients' * differentiated}".removeprefix("torch.")
            taken = str(self.dtype).removeprefix("torch.")
            raise ValueError(f"images are {found}; these packed weights take {taken}, and have no gradients")
        with torch.autocast("cpu", enabled=False):
            return self._run(images)

    def __repr__(self) -> str:
        return f"PackedMixer({str(self.dtype).removeprefix('torch.')}, {self.kernels})"

    def __reduce__(self) -> Any:
        raise TypeError("a PackedMixer cannot be copied or saved; keep the model, and call its packed() anew")


_RUNS: dict[Kernels, Callable[[Any], Callable[[Tensor], Tensor]]] = {"onednn": OneDnnMixer, "blas": BlasMixer}


def kernels_for(dtype: torch.dtype, asked: Kernels | None = None) -> Kernels:
    """The kernels of a packed model of this dtype: `asked`, by default those that are fast on this processor.

    Raises `ConfigError` for a name that is unknown, or for kernels that do not work here.
    """
    if asked is not None and asked not in KERNELS:
        raise ConfigError(f"kernels is {asked!r}; it must be one of {', '.join(KERNELS)}, or None")
    if asked == "onednn" and not packs(dtype):
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"kernels is 'onednn', which does not multiply by packed weights in {name} here (torch "
            f"{torch.__version__}, {instruction_set()}); use 'blas', or None"
        )
    if asked is None:
        wanted = torch.backends.mkldnn.enabled and (dtype == torch.bfloat16 or preferred_kernels() == "onednn")
        return "onednn" if wanted and packs(dtype) else "blas"
    return asked


def packed_product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from (rows, in) to (rows, out) that multiplies by `weight` (out, in) as a packed model of its dtype.

    A result may be overwritten by the next one.
    """
    return _PRODUCTS[kernels_for(weight.dtype)](weight)


_PRODUCTS: dict[Kernels, Callable[[Tensor], Callable[[Tensor], Tensor]]] = {"onednn": PackedLinear, "blas": product}


def _is_known(module: nn.Module) -> bool:
    """Whether the module's class and weights say what it computes."""
    kind = parametrize.type_before_parametrizations(module)
    if "forward" in vars(module):
        return False
    if issubclass(kind, nn.LayerNorm) and (module.weight is None or module.bias is None):
        return False
    return kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.ModuleList) or kind.__module__ in PACKABLE_MODULES


def _is_of_patches(stem: nn.Conv2d, patch_hw: tuple[int, int]) -> bool:
    """Whether the stem is a convolution of adjacent patches."""
    shapes = stem.kernel_size, stem.stride, stem.dilation, stem.padding, stem.groups
    return shapes == (patch_hw, patch_hw, (1, 1), (0, 0), 1)
