"""Tensors of torch, which are parts of storages, made of what pickles say of them.

Start at `Tensor`.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mixer_equiv.arrays.interop import NotAnArray
from mixer_equiv.arrays.lazy import Deferred
from mixer_equiv.checkpoints.formats.pickles.arrays import DTYPES, as_sizes, is_count
from mixer_equiv.checkpoints.formats.pickles.machine import Budget, Constructor, Global, PickleError, Placeholder

# Elements that the tensors of a file may repeat: they are made anew when a tensor is read, and no parameter has many.
MAX_REPEATED = 2**26


@dataclasses.dataclass(frozen=True)
class StorageKind:
    """The class of a storage. `dtype` is None for one of bytes without a type."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """The `nbytes` bytes that stand under the name `key` in a file of their own, or in `data`, in the pickle itself."""

    key: str
    kind: StorageKind
    nbytes: int
    data: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A part of a storage; `offset` and `strides` count elements of `dtype`.

    A tensor that is `conjugated` or `negated` has the conjugates, or the negatives, of what the storage holds.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements stand one behind the other, in C order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    @property
    def is_plain(self) -> bool:
        """Whether its elements are those of the storage, one behind the other."""
        return self.is_contiguous and not self.conjugated and not self.negated

    @property
    def span(self) -> int:
        """Elements from the first to the last, the last one included; 0 if there are none."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


def array_of(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """The array of a tensor, as a new one, from its `span` of numbers."""
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    array = np.ndarray(tensor.shape, numbers.dtype, numbers, strides=strides).copy() if tensor.span else numbers
    array = np.conjugate(array) if tensor.conjugated else array
    return (np.negative(array) if tensor.negated else array).reshape(tensor.shape)


@dataclasses.dataclass
class Repetitions:
    """How many elements the tensors of one file may still repeat."""

    left: int = MAX_REPEATED

    def refuse(self, tensor: Tensor) -> NotAnArray | None:
        """What stands for a tensor that repeats more; None for any other, whose repetitions are spent."""
        repeated = max(tensor.size - tensor.span, 0)
        if repeated > self.left:
            return NotAnArray(f"a tensor of {tensor.shape} that repeats {tensor.span} numbers")
        self.left -= repeated
        return None

    def array_in_pickle(self, tensor: Tensor) -> np.ndarray | Deferred | NotAnArray:
        """The array of a tensor whose numbers are in the pickle itself. Raises `PickleError` if they are elsewhere."""
        if tensor.storage.data is None:
            raise PickleError("it has a tensor of torch whose numbers are elsewhere")
        if (refused := self.refuse(tensor)) is not None:
            return refused
        numbers = _numbers(tensor, tensor.storage.data)
        if tensor.is_plain:
            return numbers.reshape(tensor.shape)
        return Deferred(tensor.shape, tensor.dtype, partial(array_of, tensor, numbers))


def _numbers(tensor: Tensor, data: bytes) -> np.ndarray:
    """The `span` of numbers of a tensor, as a part of its storage."""
    if not tensor.span:
        return np.empty(0, tensor.dtype)
    return np.frombuffer(data, tensor.dtype, tensor.span, tensor.offset * tensor.dtype.itemsize)


class StorageId(NamedTuple):
    """What tells storages apart, and their class: a `StorageKind`, or what else stands there."""

    key: str
    kind: Any


def storage_of(identity: Any) -> StorageId:
    """What a persistent id says, which is ("storage", class, key, device, elements). How many is known of the bytes."""
    match identity:
        case ("storage", kind, str() as key, *_):
            return StorageId(key, kind)
    raise PickleError("it refers to something outside of it that is no storage")


def _tensor(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """`torch._utils._rebuild_tensor_v2`."""
    match arguments:
        case (Storage() as storage, offset, shape, strides, *rest):
            if storage.kind.dtype is None:
                return NotAnArray("a tensor of no dtype")
            return _part(storage, storage.kind.dtype, offset, shape, strides, rest[2] if len(rest) > 2 else None)
    raise PickleError("a tensor of no storage")


def _tensor_of_dtype(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """`torch._utils._rebuild_tensor_v3`."""
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, _, dtype, *rest):
            if not isinstance(dtype, np.dtype):
                name = dtype.name if isinstance(dtype, Global) else reprlib.repr(dtype)
                return NotAnArray(f"a tensor of {name}")
            return _part(storage, dtype, offset, shape, strides, rest[0] if rest else None)
    raise PickleError("a tensor of no storage")


def _part(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any, bits: Any) -> Tensor:
    sizes = as_sizes(shape)
    if strides == ():  # which torch takes for those of an array in C order
        strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    if not isinstance(strides, tuple) or len(strides) != len(sizes) or not all(map(is_count, strides)):
        raise PickleError(f"a tensor of the shape {sizes} has the strides {reprlib.repr(strides)}")
    if not is_count(offset):
        raise PickleError(f"a tensor begins at {reprlib.repr(offset)}")
    conjugated, negated = (isinstance(bits, dict) and bits.get(bit) is True for bit in ("conj", "neg"))
    if (conjugated and dtype.kind != "c") or (negated and dtype.kind == "b"):
        raise PickleError(f"a tensor of {dtype} is {'conjugated' if conjugated else 'negated'}, as none can be")
    made = Tensor(storage, dtype, offset, sizes, strides, conjugated, negated)
    end = (offset + made.span) * dtype.itemsize
    if made.span and end > storage.nbytes:
        raise PickleError(f"a tensor of the shape {sizes} ends {end} bytes into a storage of {storage.nbytes}")
    return made


def _first(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """The first argument, which is the tensor that the call would wrap."""
    if not arguments:
        raise PickleError("a parameter of no tensor")
    return arguments[0]


# Classes of tensors whose data are an ordinary one's.
_PLAIN_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


def _of_class(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes, or of a class of its own."""
    match arguments:
        case (Global(function), Global(name), tuple() as inner, *state):
            known = TENSORS.get(function)
            if name.endswith(".DTensor"):
                return _of_all_devices(inner, state)
            is_plain = name in _PLAIN_TENSORS and known not in (None, _of_class)
            return known(budget, inner) if known and is_plain else NotAnArray(f"a {name}")
    raise PickleError("a tensor of no class")


def _of_all_devices(inner: tuple[Any, ...], state: list[Any]) -> Any:
    """The part of a DTensor that is in the file, if it is the whole, by the shape among its `inner` arguments."""
    match inner, state:
        case (_, _, shape, *_), [(_, {"_local_tensor": Tensor() as part, "_spec": Placeholder(state=dict() as spec)})]:
            if shape == part.shape and not _is_sum(spec.get("placements")):
                return part
    return NotAnArray(
        "a part of a DTensor, whose other parts other processes have; gather it where it is, by tensor.full_tensor(), "
        "and save it again"
    )


def _is_sum(placements: Any) -> bool:
    """Whether the parts of a DTensor are to be added, or may be, for all that its placements say."""
    if not isinstance(placements, tuple | list) or not placements:
        return True
    return any("Partial" in getattr(one, "name", "Partial") for one in placements)


def _no_array(what: str) -> Constructor:
    return lambda budget, arguments: NotAnArray(what)


def _size(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else ()


_UTILS = "torch._utils"

TENSORS: Mapping[str, Constructor] = {
    "torch.Size": _size,
    f"{_UTILS}._rebuild_tensor": _tensor,
    f"{_UTILS}._rebuild_tensor_v2": _tensor,
    f"{_UTILS}._rebuild_tensor_v3": _tensor_of_dtype,
    f"{_UTILS}._rebuild_parameter": _first,
    f"{_UTILS}._rebuild_parameter_with_state": _first,
    f"{_UTILS}._rebuild_device_tensor_from_numpy": _first,
    f"{_UTILS}._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    f"{_UTILS}._rebuild_sparse_tensor": _no_array("a sparse torch tensor"),
    f"{_UTILS}._rebuild_nested_tensor": _no_array("a nested torch tensor"),
    f"{_UTILS}._rebuild_qtensor": _no_array("a quantised torch tensor"),
    f"{_UTILS}._rebuild_wrapper_subclass": _no_array("a torch tensor of a class of its own"),
    f"{_UTILS}._rebuild_meta_tensor_no_storage": _no_array("a torch tensor on the meta device, which has no numbers"),
}

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    # Quantised storages, whose tensors are no arrays whatever their bytes.
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}

# Classes of storages by the names that pickles give them.
STORAGE_KINDS: Mapping[str, StorageKind] = {
    **{
        f"{module}.{name}": StorageKind(DTYPES[f"torch.{dtype}"])
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
    **{f"{module}.UntypedStorage": StorageKind(None) for module in ("torch", "torch.storage")},
}
