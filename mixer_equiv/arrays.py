"""Arrays of any framework to NumPy and back, every bit kept, no framework imported for NumPy's own."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from mixer_equiv.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    import torch

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

# The dtypes that a parameter may have.
DTYPES = {str(dtype): dtype for dtype in map(np.dtype, ("float16", BFLOAT16, "float32", "float64"))}


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array whose numbers need not be read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, each made NumPy's when it is asked for, and not kept; `specs` reads none of them.

    `leaves` are arrays of any framework, and of files; `shapes` are given to them, where they say so.
    """

    def __init__(self, leaves: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._leaves = dict(leaves)
        shapes = shapes or {}
        self.specs = {
            name: Spec(shapes.get(name, tuple(leaf.shape)), stored_dtype(name, leaf)) for name, leaf in leaves.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        return to_numpy(name, self._leaves[name]).reshape(self.specs[name].shape)

    def __contains__(self, name: object) -> bool:
        return name in self._leaves  # without it, Mapping would read the array to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


_PLACES = re.compile(r"(?:\[\d+\])+$")


class _Stack:
    """An array of which parts are read one after another: kept from the first to the last of them."""

    def __init__(self, name: str, leaf: Any, parts: int) -> None:
        self.name, self.leaf, self.parts = name, leaf, parts
        self.dtype = stored_dtype(name, leaf)
        self._whole: np.ndarray | None = None
        self._left = parts

    def read(self) -> np.ndarray:
        whole = to_numpy(self.name, self.leaf) if self._whole is None else self._whole
        self._left -= 1
        if not self._left:
            self._whole, self._left = None, self.parts
        else:
            self._whole = whole
        return whole


@dataclasses.dataclass(frozen=True)
class _Part:
    """What stands at some place of a stack, as an array that is read when it is used."""

    stack: _Stack
    place: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stack.leaf.shape)[len(self.place) :]

    @property
    def dtype(self) -> np.dtype:
        return self.stack.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.stack.read()[self.place]


def split(leaves: Mapping[str, Any], depth_of: Callable[[str], int]) -> dict[str, Any]:
    """`leaves` with each stack taken apart: for "kernels" the parts "kernels[0]", "kernels[1]".

    `depth_of` gives the number of axes that count a stack's parts, 0 for what is none.
    """
    result: dict[str, Any] = {}
    for name, leaf in leaves.items():
        depth = depth_of(name) if is_array(leaf) and len(leaf.shape) >= depth_of(name) else 0
        if not depth:
            result[name] = leaf
            continue
        places = list(np.ndindex(*leaf.shape[:depth]))
        stack = _Stack(name, leaf, len(places))
        result.update({name + "".join(f"[{i}]" for i in place): _Part(stack, place) for place in places})
    return result


def joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `split`: arrays called "kernels[0]", "kernels[1]" in one called "kernels".

    Raises `ConversionError` where a part is missing, or is of another dtype than the others.
    """
    result: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for name, array in arrays.items():
        places = _PLACES.search(name)
        if places is None:
            result[name] = array
        else:
            place = tuple(map(int, re.findall(r"\d+", places[0])))
            stacks.setdefault(name[: places.start()], {})[place] = array
    for name, parts in stacks.items():
        sizes = tuple(max(numbers) + 1 for numbers in zip(*parts, strict=True))
        absent = [place for place in np.ndindex(*sizes) if place not in parts]
        if absent:
            raise ConversionError(f"{name} cannot be stacked: {name}{''.join(f'[{i}]' for i in absent[0])} is missing")
        dtypes = sorted({str(part.dtype) for part in parts.values()})
        if len(dtypes) > 1:
            raise ConversionError(f"{name} cannot be stacked: its parts are of {' and '.join(dtypes)}")
        whole = np.stack([parts[place] for place in np.ndindex(*sizes)])
        result[name] = whole.reshape(*sizes, *whole.shape[1:])
    return result


def specs(arrays: Mapping[str, np.ndarray]) -> Mapping[str, Spec]:
    """Shape and dtype of each of `arrays`."""
    if isinstance(arrays, LazyArrays):
        return arrays.specs
    return {name: Spec(array.shape, array.dtype) for name, array in arrays.items()}


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
    """`array` as a torch tensor of the same bits and dtype, sharing its memory if that may be written.

    Raises `MissingDependencyError` without torch.
    """
    torch = require("torch", "torch", "a torch tensor")
    array = array if array.flags.writeable else array.copy()
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
