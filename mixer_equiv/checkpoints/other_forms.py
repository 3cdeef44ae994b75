"""Weights in another form than plain arrays: adapters, masks, factors, quantised numbers.

Masks are multiplied, as torch does it; all others are named, with the remedy, in one table. Reads no array. Start at
`with_masks` and `form_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.arrays.interop import is_array, stored_dtype, to_numpy
from mixer_equiv.arrays.lazy import Deferred, Spec
from mixer_equiv.checkpoints.names import Stripped
from mixer_equiv.errors import summarize


class Form(NamedTuple):
    """One such form: the arrays that show it, by names and specs, what it is, and what to do where the model is."""

    shown_by: Callable[[str, Spec], bool]
    what: str
    remedy: str


def _called(*parts: str) -> Callable[[str, Spec], bool]:
    """Whether one of these is a part of the name."""
    pattern = re.compile(rf"(?:^|[./])(?:{'|'.join(parts)})(?:[./]|$)")
    return lambda name, spec: pattern.search(name) is not None


FORMS: Mapping[str, Form] = {
    "LoRA": Form(
        _called("lora_[AB]", "lora_embedding_[AB]", "lora_magnitude_vector", "base_layer"),
        "adapters (LoRA) of PEFT beside the weights",
        "merge them and save again: model = model.merge_and_unload(); torch.save(model.state_dict(), 'merged.pt')",
    ),
    "spectral_norm": Form(
        _called("weight_u"),
        "a vector of torch.nn.utils.spectral_norm beside the weights",
        "make the weights and save again: [torch.nn.utils.remove_spectral_norm(m) for m in model.modules() "
        "if hasattr(m, 'weight_u')]",
    ),
    "pruning": Form(
        _called("(?:weight|bias)_mask"),
        "a mask of torch.nn.utils.prune beside the weights",
        "make it permanent and save again: [torch.nn.utils.prune.remove(m, n) for m in model.modules() "
        "for n in ('weight', 'bias') if hasattr(m, f'{n}_mask')]",
    ),
    "weight_norm": Form(
        _called("weight_g", "weight_v"),
        "the factors of torch.nn.utils.weight_norm",
        "multiply them and save again: [torch.nn.utils.remove_weight_norm(m) for m in model.modules() "
        "if hasattr(m, 'weight_g')]",
    ),
    "parametrization": Form(
        _called("parametrizations"),
        "what a parametrization of torch (weight_norm, spectral_norm, orthogonal) makes weights of",
        "make the weights and save again: [torch.nn.utils.parametrize.remove_parametrizations(m, n) for m in "
        "list(model.modules()) if torch.nn.utils.parametrize.is_parametrized(m) for n in list(m.parametrizations)]",
    ),
    "int8 of bitsandbytes": Form(
        _called("SCB", "weight_format"),
        "8-bit weights of bitsandbytes with their scales",
        "save the model as it was before load_in_8bit, or after model.dequantize()",
    ),
    "4-bit": Form(
        _called("absmax", "quant_map", "quant_state", "nested_absmax", "qweight", "qzeros", "g_idx"),
        "4-bit weights (bitsandbytes, GPTQ or AWQ) with their scales",
        "save the model as it was before quantisation, or after model.dequantize()",
    ),
    "quantised": Form(
        _called("_packed_params", "zero_point"),
        "weights that torch.ao.quantization packed",
        "save the state_dict of the model as it was before, or take the numbers out: "
        "{f'{n}.weight': m.weight().dequantize() for n, m in model.named_modules() "
        "if callable(getattr(m, 'weight', 0))}",
    ),
    "float8": Form(
        lambda name, spec: str(spec.dtype).startswith("float8"),
        "float8 numbers, which mean nothing without their scales",
        "multiply them and save again, such as weight.float() * weight_scale_inv",
    ),
    "FSDP": Form(
        _called(r"_?flat_param(?:_\d+)?"),
        "the flat parameters of FSDP, of which each process holds a part",
        "save the whole state_dict: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
        "options=StateDictOptions(full_state_dict=True))",
    ),
    "ZeRO-3": Form(
        lambda name, spec: spec.shape == (0,),
        "a placeholder of DeepSpeed's ZeRO-3, whose numbers are in other files",
        "put them together with the script that is beside them, python zero_to_fp32.py . model.pt, and give that file",
    ),
}


def with_masks(leaves: Mapping[str, Any]) -> Stripped:
    """Put the products in the place of pairs such as "weight_orig" and "weight_mask", as torch.nn.utils.prune does."""
    result = dict(leaves)
    masked = []
    for name, leaf in leaves.items():
        stem, mask = name.removesuffix("_orig"), leaves.get(f"{name.removesuffix('_orig')}_mask")
        if stem in leaves or not is_array(leaf) or mask is None or leaf.shape != getattr(mask, "shape", None):
            continue
        del result[name], result[f"{stem}_mask"]
        result[stem] = Deferred(tuple(leaf.shape), stored_dtype(name, leaf), partial(_product, name, leaf, mask))
        masked.append(stem)
    notes = [f"multiplied with the masks of torch.nn.utils.prune: {summarize(masked)}"] if masked else []
    return Stripped(result, notes)


def _product(name: str, leaf: Any, mask: Any) -> np.ndarray:
    array = to_numpy(name, leaf)
    return np.multiply(to_numpy(name, mask).astype(array.dtype), array)


def form_of(specs: Mapping[str, Spec]) -> str:
    """Say which array is in which other form, and what to do, for the first of `FORMS` that is there; "" if none is."""
    for form in FORMS.values():
        for name, spec in specs.items():
            if form.shown_by(name, spec):
                return f"{name} is {form.what}; {form.remedy}"
    return ""
