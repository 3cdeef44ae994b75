"""Conversion between NumPy and any framework's arrays, every bit kept, and between nested and flat names.

A framework is imported only for its own arrays.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mixer_equiv.arrays.chunks import contiguous_copy
from mixer_equiv.errors import ConversionError, MissingDependencyError, MixerEquivError

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class NotAnArray:
    """Stands for what a file has in the place of an array, and no array can hold: `what` says it in words."""

    what: str


# Dtypes of parameters, by name.
DTYPES = {str(dtype): dtype for dtype in map(np.dtype, ("float16", BFLOAT16, "float32", "float64"))}


def stored_dtype(name: str, array: Any) -> np.dtype:
    """The dtype that `to_numpy` would give `array`, found without reading its numbers."""
    if not is_array(array):
        return to_numpy(name, array).dtype
    if _is_torch(array):
        import torch

        return to_numpy(name, torch.empty(0, dtype=array.dtype)).dtype
    return to_numpy(name, np.empty(0, array.dtype)).dtype


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, in order, under keys joined by "/"; a list that holds mappings counts as one.

    A key that is a tuple, as `flax.traverse_util.flatten_dict` makes it, counts as a path of keys.
    """
    for key, value in tree.items():
        name = prefix + ("/".join(map(str, key)) if isinstance(key, tuple) else str(key))
        node = as_mapping(value)
        if node is not None:
            yield from flatten(node, f"{name}/")
        else:
            yield name, value


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """`value` as a mapping: itself if it is one, a list that holds mappings by index, None for anything else."""
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return dict(enumerate(value))
    return value if isinstance(value, Mapping) else None


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts from keys joined by "/": the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def is_array(value: Any) -> bool:
    """Whether `value` has shape and dtype, as arrays of NumPy, torch and JAX and `Deferred` ones have.

    Arrays of JAX's typed keys of random numbers are none: no dtype of NumPy is theirs.
    """
    return hasattr(value, "shape") and hasattr(value, "dtype") and not _is_of_keys(value.dtype)


def _is_of_keys(dtype: Any) -> bool:
    return not isinstance(dtype, np.dtype) and type(dtype).__module__.partition(".")[0] == "jax"


def holds_numbers(dtype: Any) -> bool:
    """Whether arrays of a dtype hold numbers, and no text, objects or fields; two-byte void is bfloat16."""
    if not isinstance(dtype, np.dtype) or dtype == np.dtype("V2"):
        return True
    # The types of ml_dtypes are of kind "V" too, without being void: their module tells.
    return dtype.kind not in "OSUVT" or dtype.type.__module__ == "ml_dtypes"


def shapes_of(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays among `leaves`."""
    return {name: tuple(leaf.shape) for name, leaf in leaves.items() if is_array(leaf)}


def to_numpy(name: str, array: Any) -> np.ndarray:
    """`array` as a NumPy array of the same bits and dtype, sharing memory where it can.

    bfloat16 becomes `ml_dtypes.bfloat16`, and so does two-byte void, as which npz files hold bfloat16.
    Raises `ConversionError` for object, string and structured arrays.
    """
    if isinstance(array, NotAnArray):
        raise ConversionError(f"{name}: found {array.what}; a parameter must be an array of numbers")
    if isinstance(array, np.ma.MaskedArray):
        raise ConversionError(f"{name}: found a masked array, and files have no masks; fill it: array.filled(0)")
    if _is_torch(array):
        array = _from_torch(name, array)
    try:
        result = np.asarray(array)
    except MixerEquivError:  # raised while a deferred array is computed
        raise
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{name}: {type(array).__name__} is not an array NumPy can hold: {error}") from error
    if result.dtype == np.dtype("V2"):
        return result.view(BFLOAT16)
    if not result.dtype.isnative:
        return result.astype(result.dtype.newbyteorder("="))
    if not holds_numbers(result.dtype):
        raise ConversionError(f"{name}: found an array of {result.dtype}; a parameter must be an array of numbers")
    return result


def to_torch(array: np.ndarray) -> torch.Tensor:
    """`array` as a torch tensor of the same bits, dtype and strides, sharing memory where it can.

    Read-only arrays are copied, and so are arrays that do not begin at a multiple of their itemsize, as many do in a
    mapped npz: NumPy reads these in place, but compiled code may take them for aligned.
    Raises `MissingDependencyError` without torch.
    """
    torch = require("torch", "torch", "a torch tensor")
    array = array if array.flags.writeable and array.flags.aligned else contiguous_copy(array)
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def require(module: str, extra: str, purpose: str) -> Any:
    """Import an optional dependency, or raise `MissingDependencyError` that says how to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
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
    tensor = _local(name, tensor).detach().cpu()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.contiguous().view(torch.int16).numpy().view(BFLOAT16)
        return tensor.resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise ConversionError(
            f"{name}: a torch tensor of {tensor.dtype} ({tensor.layout}) has no NumPy counterpart: {error}"
        ) from error


def _local(name: str, tensor: Any) -> Any:
    """The tensor itself, or the part of a DTensor that this process has, if it is the whole."""
    if type(tensor).__name__ != "DTensor":
        return tensor
    part = tensor.to_local()
    if part.shape != tensor.shape or any(placement.is_partial() for placement in tensor.placements):
        raise ConversionError(
            f"{name}: this process has a part of shape {tuple(part.shape)} of a DTensor of {tuple(tensor.shape)}; "
            "gather it in all processes first: tensor.full_tensor()"
        )
    return part
