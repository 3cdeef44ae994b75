"""What pickles of weights name: dicts, NumPy's arrays, and torch's tensors, which are parts of storages.

Each name has a function that makes one of the kinds here of a call's arguments; a pickle calls nothing of NumPy, torch
or JAX. Start at `CONSTRUCTORS`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mixer_equiv.arrays.interop import DISTRIBUTED, NotAnArray
from mixer_equiv.checkpoints.formats.pickles.machine import (
    AttributeDict,
    Budget,
    Constructor,
    Global,
    PickleError,
    as_key,
)

# NumPy has no arrays of more.
MAX_AXES = 64


# NumPy


class PickledDtype:
    """A dtype in the making: `build` sets its byte order. `dtype` is None for one that holds Python objects."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype

    def build(self, state: Any) -> None:
        match state:
            case (int(), ("<" | ">" | "|" | "=") as order, None, None, None, *_):
                if self.dtype is not None and order in "<>":
                    self.dtype = self.dtype.newbyteorder(order)
            case (int(), _, _, tuple() | None, dict() | None, *_):  # subarrays and fields
                self.dtype = None
            case _:
                raise PickleError("a dtype has a state that none has")


class PickledArray:
    """An array in the making: `build` gives it shape, dtype and numbers. `array` is None for one of Python objects."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        match state:
            case (int(), tuple() as shape, PickledDtype() as kind, fortran, bytes() | bytearray() as numbers):
                self.array = _array(kind, shape, numbers, "F" if fortran else "C")
            case (int(), tuple(), PickledDtype(dtype=None), _, list()):
                pass
            case _:
                raise PickleError("an array has a state that none has")


def _array(kind: PickledDtype, shape: Any, numbers: bytes | bytearray, order: Any) -> np.ndarray | None:
    if kind.dtype is None:
        return None
    sizes = as_sizes(shape)
    if math.prod(sizes) * kind.dtype.itemsize != len(numbers):
        raise PickleError(f"an array of {kind.dtype} {sizes} has {len(numbers)} bytes")
    flat = np.frombuffer(numbers, kind.dtype) if numbers else np.empty(0, kind.dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


def as_sizes(shape: Any) -> tuple[int, ...]:
    """`shape`, checked to be one that an array can have."""
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(map(_is_count, shape)):
        raise PickleError(f"an array has the shape {str(shape)[:100]}")
    if math.prod(size for size in shape if size) >= 2**48:
        raise PickleError(f"an array has the shape {shape}, which no memory can hold")
    return shape


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


# Kinds of NumPy's dtypes whose numbers stand in the bytes themselves, as `np.dtype` spells them.
_PLAIN_DTYPE = re.compile(r"[?bBhHiIlLqQefdFD]|b1|[iu][1248]|f[248]|c8|c16|[SUV][1-9]\d{0,3}")


def _dtype(budget: Budget, arguments: tuple[Any, ...]) -> PickledDtype:
    match arguments:
        case (str() as code, *_):
            return PickledDtype(np.dtype(code) if _PLAIN_DTYPE.fullmatch(code) else None)
        case (Global(name), *_):
            return PickledDtype(DTYPES.get(name))
    raise PickleError("a dtype of no name")


def _reconstruct(budget: Budget, arguments: tuple[Any, ...]) -> PickledArray:
    return PickledArray()


def _frombuffer(budget: Budget, arguments: tuple[Any, ...]) -> PickledArray:
    match arguments:
        case (bytes() | bytearray() as numbers, PickledDtype() as kind, tuple() as shape, order):
            made = PickledArray()
            made.array = _array(kind, shape, numbers, order)
            return made
    raise PickleError("an array of no buffer")


def _scalar(budget: Budget, arguments: tuple[Any, ...]) -> PickledArray:
    match arguments:
        case (PickledDtype() as kind, bytes() as numbers):
            made = PickledArray()
            made.array = _array(kind, (), numbers, "C")
            return made
        case (PickledDtype(dtype=None), _):
            return PickledArray()
    raise PickleError("a scalar of no dtype")


def _of_jax(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """JAX pickles an array as the call and the state by which NumPy pickles it."""
    match arguments:
        case (Global(), tuple(), state, *_):
            made = PickledArray()
            made.build(state)
            return made
    raise PickleError("an array of JAX of no state")


# torch


@dataclasses.dataclass(frozen=True)
class StorageKind:
    """The class of a storage. `dtype` is None for one of bytes without a type."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Storage:
    """The `nbytes` bytes that stand under the name `key`, in a file of their own."""

    key: str
    kind: StorageKind
    nbytes: int


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
    def span(self) -> int:
        """Elements from the first to the last, the last one included; 0 if there are none."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


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
        case (NotAnArray() as other, *_):
            return other
    raise PickleError("a tensor of no storage")


def _tensor_of_dtype(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    """`torch._utils._rebuild_tensor_v3`."""
    match arguments:
        case (Storage() as storage, offset, shape, strides, _, _, dtype, *rest):
            if not isinstance(dtype, np.dtype):
                name = dtype.name if isinstance(dtype, Global) else str(dtype)[:100]
                return NotAnArray(f"a tensor of {name}")
            return _part(storage, dtype, offset, shape, strides, rest[0] if rest else None)
    raise PickleError("a tensor of no storage")


def _part(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any, bits: Any) -> Tensor:
    sizes = as_sizes(shape)
    if strides == ():  # which torch takes for those of an array in C order
        strides = tuple(math.prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    if not isinstance(strides, tuple) or len(strides) != len(sizes) or not all(map(_is_count, strides)):
        raise PickleError(f"a tensor of the shape {sizes} has the strides {str(strides)[:100]}")
    if not _is_count(offset):
        raise PickleError(f"a tensor begins at {str(offset)[:100]}")
    told = bits if isinstance(bits, dict) else {}
    made = Tensor(
        storage, dtype, offset, sizes, strides, told.get("conj", False) is True, told.get("neg", False) is True
    )
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
        case (Global(function), Global(name), tuple() as inner, *_):
            known = CONSTRUCTORS.get(function)
            if known and name in _PLAIN_TENSORS:
                return known(budget, inner)
            return NotAnArray(DISTRIBUTED if name.endswith(".DTensor") else f"a {name}")
    raise PickleError("a tensor of no class")


def _no_array(what: str) -> Constructor:
    return lambda budget, arguments: NotAnArray(what)


# Python


def _dict(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case ():
            return AttributeDict()
        case (dict() as given,):
            budget.spend(operations=len(given))
            return AttributeDict(given)
        case (list() as pairs,) if all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            budget.spend(operations=len(pairs))
            return AttributeDict((as_key(key), value) for key, value in pairs)
    raise PickleError("a dict of what is none")


def _default_dict(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    return _dict(budget, arguments[1:])


def _set(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case ():
            return set()
        case (list() | tuple() as members,):
            budget.spend(operations=len(members))
            return set(map(as_key, members))
    raise PickleError("a set of what is none")


def _encode(budget: Budget, arguments: tuple[Any, ...]) -> bytes:
    """`_codecs.encode`, by which old protocols write bytes as text."""
    match arguments:
        case (str() as text, "latin1" | "latin-1"):
            budget.spend(operations=len(text) // 1000)
            return text.encode("latin-1")
    raise PickleError("text that stands for bytes in some other code than latin1")


def _bytes(made: Callable[[bytes], Any]) -> Constructor:
    def of(budget: Budget, arguments: tuple[Any, ...]) -> Any:
        match arguments:
            case ():
                return made(b"")
            case (bytes() | bytearray() as given,):
                budget.spend(operations=len(given) // 1000)
                return made(bytes(given))
        raise PickleError("bytes of what are none")

    return of


def _size(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if arguments else ()


def _modules(name: str, *modules: str) -> list[str]:
    return [f"{module}.{name}" for module in modules]


_NUMPY = "numpy.core.multiarray", "numpy._core.multiarray"
_UTILS = "torch._utils"

CONSTRUCTORS: Mapping[str, Constructor] = {
    **dict.fromkeys(_modules("OrderedDict", "collections"), _dict),
    **dict.fromkeys(_modules("dict", "builtins", "__builtin__"), _dict),
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    "flax.core.frozen_dict.FrozenDict": _dict,
    **dict.fromkeys(_modules("set", "builtins", "__builtin__"), _set),
    **dict.fromkeys(_modules("bytearray", "builtins", "__builtin__"), _bytes(bytearray)),
    **dict.fromkeys(_modules("bytes", "builtins", "__builtin__"), _bytes(bytes)),
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    **dict.fromkeys(_modules("_reconstruct", *_NUMPY), _reconstruct),
    **dict.fromkeys(_modules("scalar", *_NUMPY), _scalar),
    **dict.fromkeys(_modules("_frombuffer", "numpy.core.numeric", "numpy._core.numeric"), _frombuffer),
    "jax._src.array._reconstruct_array": _of_jax,
    "torch.Size": _size,
    f"{_UTILS}._rebuild_tensor": _tensor,
    f"{_UTILS}._rebuild_tensor_v2": _tensor,
    f"{_UTILS}._rebuild_tensor_v3": _tensor_of_dtype,
    f"{_UTILS}._rebuild_parameter": _first,
    f"{_UTILS}._rebuild_parameter_with_state": _first,
    f"{_UTILS}._rebuild_device_tensor_from_numpy": _first,
    f"{_UTILS}._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch.storage._load_from_bytes": _no_array("a torch tensor as pickle itself writes it; write it by torch.save"),
    f"{_UTILS}._rebuild_sparse_tensor": _no_array("a sparse torch tensor"),
    f"{_UTILS}._rebuild_nested_tensor": _no_array("a nested torch tensor"),
    f"{_UTILS}._rebuild_qtensor": _no_array("a quantised torch tensor"),
    f"{_UTILS}._rebuild_wrapper_subclass": _no_array("a torch tensor of a class of its own"),
    f"{_UTILS}._rebuild_meta_tensor_no_storage": _no_array("a torch tensor on the meta device, which has no numbers"),
}

_OF_ML_DTYPES = (*("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),)
_OF_NUMPY = (
    *("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "complex64", "complex128"),
)

# Dtypes by the names that pickles give them.
DTYPES: Mapping[str, np.dtype] = {
    **{f"torch.{name}": np.dtype(name) for name in _OF_NUMPY},
    **{
        f"{module}.{name}": np.dtype(getattr(ml_dtypes, name))
        for module in ("torch", "ml_dtypes")
        for name in _OF_ML_DTYPES
        if hasattr(ml_dtypes, name)  # old ones lack some
    },
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

CONSTANTS: Mapping[str, Any] = {
    **{name: dtype for name, dtype in DTYPES.items() if name.startswith("torch.")},
    **{
        f"{module}.{name}": StorageKind(DTYPES[f"torch.{dtype}"])
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGES.items()
    },
    **{f"{module}.UntypedStorage": StorageKind(None) for module in ("torch", "torch.storage")},
}
