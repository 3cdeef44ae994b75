"""Weights in other forms than plain arrays: each is named with what to do, and what to do is done and works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from mixer_equiv import Checkpoint, ConversionError, LayoutError, convert, load
from mixer_equiv.checkpoints.other_forms import FORMS
from mixer_equiv.models.torch import MlpMixer
from tests.support.files import changed
from tests.support.sizes import CONFIG

LINEAR = nn.Linear | nn.Conv2d


def trained() -> nn.Module:
    torch.manual_seed(5)
    model = MlpMixer(CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def changed_linears(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = trained()
    for module in list(model.modules()):
        if isinstance(module, LINEAR):
            change(module)
    return model


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def typed(message: str, model: nn.Module) -> None:
    """Run the list that a message tells to run."""
    command = re.search(r"save again: (\[.*\])", message)
    assert command is not None, message
    eval(command[1], {"torch": torch, "model": model})


OF_TORCH: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": nn.utils.weight_norm,
    "parametrization": parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", None])
@pytest.mark.parametrize("form", OF_TORCH)
def test_factors_of_weights_are_named_and_what_is_said_to_be_run_makes_weights(
    tmp_path: Path, form: str, suffix: str | None
) -> None:
    model = changed_linears(OF_TORCH[form])
    with pytest.raises((ConversionError, LayoutError), match=re.escape(FORMS[form].what)) as caught:
        convert(in_file(arrays_of(model), tmp_path, suffix), to="linen")
    typed(str(caught.value), model)
    assert changed(arrays_of(model), Checkpoint.from_arrays(model.state_dict(), config=CONFIG).arrays) == []


def in_file(arrays: dict[str, np.ndarray], folder: Path, suffix: str | None) -> Any:
    """The arrays as they are, or as a file of `suffix` has them."""
    if suffix is None:
        return arrays
    path = folder / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        write = torch.save if suffix == ".pt" else save_file
        write({name: tensor_of(array) for name, array in arrays.items()}, path)
    return load(path)


def tensor_of(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", None])
def test_masks_are_multiplied_as_torch_does_it(tmp_path: Path, suffix: str | None) -> None:
    model = changed_linears(lambda module: prune.l1_unstructured(module, "weight", 0.5))
    assert any(name.endswith("weight_mask") for name in model.state_dict())
    found = in_file(arrays_of(model), tmp_path, suffix)
    found = Checkpoint.from_arrays(found, config=CONFIG) if suffix is None else found
    assert any("multiplied with the masks of torch.nn.utils.prune" in note for note in found.notes)
    for module in model.modules():
        if isinstance(module, LINEAR):
            prune.remove(module, "weight")
    assert changed(arrays_of(model), found.arrays) == []


def test_a_mask_without_what_it_is_for_is_named() -> None:
    model = changed_linears(lambda module: prune.l1_unstructured(module, "weight", 0.5))
    arrays = arrays_of(model)
    del arrays["head.weight_orig"]
    with pytest.raises(ConversionError, match=r"head\.weight_mask is a mask of torch\.nn\.utils\.prune"):
        convert(arrays, to="linen")


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_torch_quantized_is_named_and_the_numbers_come_out() -> None:
    model = trained().eval()
    truth = arrays_of(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    state = dict(quantized.state_dict())
    with pytest.raises((ConversionError, LayoutError), match=r"weights that torch\.ao\.quantization packed") as caught:
        convert(state, to="linen")
    command = re.search(r"take the numbers out: (\{.*\})", str(caught.value))
    assert command is not None
    weights = eval(command[1], {"model": quantized})
    plain = {name: tensor for name, tensor in state.items() if name in truth}
    biases = {f"{n}.bias": m.bias() for n, m in quantized.named_modules() if callable(getattr(m, "bias", 0))}
    found = Checkpoint.from_arrays({**plain, **weights, **biases}, config=CONFIG)
    found.check()
    step = np.abs(truth["head.weight"]).max() / 127
    assert np.abs(found.arrays["head.weight"] - truth["head.weight"]).max() <= step


def with_(change: Callable[[str, np.ndarray], dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, array in arrays_of(trained()).items():
        result |= change(name, array) if name.endswith("weight") and array.ndim == 2 else {name: array}
    return result


def lora(name: str, array: np.ndarray) -> dict[str, Any]:
    module = name.removesuffix(".weight")
    low = {f"{module}.lora_A.default.weight": array[:2], f"{module}.lora_B.default.weight": array[:, :2]}
    return {f"{module}.base_layer.weight": array, **low}


def int8(name: str, array: np.ndarray) -> dict[str, Any]:
    return {name: array.astype(np.int8), name.replace("weight", "SCB"): np.abs(array).max(1)}


def gptq(name: str, array: np.ndarray) -> dict[str, Any]:
    stem = name.removesuffix("weight")
    return {f"{stem}qweight": array.astype(np.int32), f"{stem}scales": array[:1], f"{stem}g_idx": np.arange(3)}


def float8(name: str, array: np.ndarray) -> dict[str, Any]:
    return {name: array.astype(ml_dtypes.float8_e4m3fn), f"{name}_scale_inv": np.ones((1, 1), np.float32)}


BY_ARRAYS: dict[str, Callable[[str, np.ndarray], dict[str, Any]]] = {
    "LoRA": lora,
    "int8 of bitsandbytes": int8,
    "4-bit": gptq,
    "float8": float8,
    "FSDP": lambda name, array: {f"{name.rpartition('.')[0]}._flat_param": array.reshape(-1)},
    "ZeRO-3": lambda name, array: {name: array.reshape(-1)[:0]},
}


# NumPy has no float8 of its own, and its files hold none.
IN_FILES = [(form, suffix) for form in BY_ARRAYS for suffix in (".pt", ".safetensors", ".npz", None)]
IN_FILES.remove(("float8", ".npz"))


@pytest.mark.parametrize(("form", "suffix"), IN_FILES)
def test_other_forms_are_named_with_the_remedy(tmp_path: Path, form: str, suffix: str | None) -> None:
    with pytest.raises((ConversionError, LayoutError)) as caught:
        convert(in_file(with_(BY_ARRAYS[form]), tmp_path, suffix), to="linen")
    assert FORMS[form].what in str(caught.value)
    assert FORMS[form].remedy in str(caught.value)
    assert "--ignore" not in str(caught.value)


def test_every_form_is_tried() -> None:
    assert {*OF_TORCH, *BY_ARRAYS, "pruning", "quantised"} == set(FORMS)
