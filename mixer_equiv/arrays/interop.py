"""Arrays of any framework to NumPy and back, every bit kept, no framework imported for NumPy's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mixer_equiv.arrays.chunks import copied
from mixer_equiv.errors import ConversionError, MissingDependencyError, MixerEquivError

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# The dtypes that a parameter may have.
DTYPES = {str(dtype): dtype for dtype in map(np.dtype, ("float16", BFLOAT16, "float32", "float64"))}


def stored_dtype(name: str, array: Any) -> np.dtype:
    """The dtype that `to_numpy` gives `array`, whose numbers are not read."""
    if not is_array(array):
        return to_numpy(name, array).dtype
    if _is_torch(array):
        import torch

        return to_numpy(name, torch.empty(0, dtype=array.dtype)).dtype
    return to_numpy(name, np.empty(0, array.dtype)).dtype


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, in their order, with keys joined by "/"; in lists of mappings the place is the key."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        node = as_mapping(value)
        if node is not None:
            yield from flatten(node, f"{name}/")
        else:
            yield name, value


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """`value` as what can hold named arrays: a mapping, or a list of which some are mappings, by place."""
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return dict(enumerate(value))
    return value if isinstance(value, Mapping) else None


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dicts whose joined keys are `flat`'s: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy, torch, JAX or anything that speaks `__array__`."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def to_numpy(name: str, array: Any) -> np.ndarray:
    """`array` as a NumPy array of the same bits and dtype, sharing memory where it can.

    bfloat16 comes out as `ml_dtypes.bfloat16`; two-byte void, which is how npz files hold
    bfloat16, is read as that. Raises `ConversionError` for object, string and structured arrays.
    """
    if _is_torch(array):
        array = _from_torch(name, array)
    try:
        result = np.asarray(array)
    except MixerEquivError:  # of an array that is made when it is used
        raise
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{name}: {type(array).__name__} is not an array NumPy can hold: {error}") from error
    if result.dtype == np.dtype("V2"):
        return result.view(BFLOAT16)
    if not result.dtype.isnative:
        return result.astype(result.dtype.newbyteorder("="))
    # ml_dtypes' types are of kind "V" without being void, so their names are asked.
    if result.dtype.kind in "OSUV" and result.dtype.type.__module__ != "ml_dtypes":
        raise ConversionError(f"{name}: found an array of {result.dtype}; a parameter must be an array of numbers")
    return result


def to_torch(array: np.ndarray) -> torch.Tensor:
    """`array` as a torch tensor of the same bits and dtype, in its strides, sharing its memory where it can.

    What may not be written is copied, and what does not begin at a multiple of its itemsize, as many
    arrays of a mapped npz: NumPy reads that in place, but compiled code may take it for aligned.
    Raises `MissingDependencyError` without torch.
    """
    torch = require("torch", "torch", "a torch tensor")
    array = array if array.flags.writeable and array.flags.aligned else copied(array)
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency, or raise `MissingDependencyError` saying how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:  # also what a broken installation raises
        what = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise MissingDependencyError(
            f"{purpose} needs {module}, which cannot be imported ({what}); pip install 'mixer_equiv[{extra}]'"
        ) from error


def _is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _from_torch(name: str, tensor: Any) -> np.ndarray:
    import torch

    if tensor.device.type == "meta":
        raise ConversionError(f"{name}: the tensor is on the meta device and holds no values; load the weights first")
    tensor = tensor.detach().cpu()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
        return tensor.resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise ConversionError(
            f"{name}: a torch tensor of {tensor.dtype} ({tensor.layout}) has no NumPy counterpart: {error}"
        ) from error
