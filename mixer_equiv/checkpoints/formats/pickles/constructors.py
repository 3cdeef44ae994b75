"""What pickles of weights name: dicts and other objects of Python, arrays of NumPy and JAX, and torch's tensors.

Each name has a function that makes one of the kinds in `arrays`, in `tensors` or here of a call's arguments; a pickle
calls nothing of NumPy, torch or JAX. Start at `CONSTRUCTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixer_equiv.checkpoints.formats.pickles.arrays import ARRAYS, DTYPES
from mixer_equiv.checkpoints.formats.pickles.machine import AttributeDict, Budget, Constructor, PickleError, as_key
from mixer_equiv.checkpoints.formats.pickles.tensors import TENSORS, StorageKind


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


_BUILTINS = "builtins", "__builtin__"

CONSTRUCTORS: Mapping[str, Constructor] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    "flax.core.frozen_dict.FrozenDict": _dict,
    **{f"{module}.dict": _dict for module in _BUILTINS},
    **{f"{module}.set": _set for module in _BUILTINS},
    **{f"{module}.bytearray": _bytes(bytearray) for module in _BUILTINS},
    **{f"{module}.bytes": _bytes(bytes) for module in _BUILTINS},
    "_codecs.encode": _encode,
    **ARRAYS,
    **TENSORS,
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
