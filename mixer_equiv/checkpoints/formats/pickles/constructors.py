"""What pickles of weights name: dicts and other objects of Python, arrays of NumPy and JAX, and torch's tensors.

Each name has a function that makes one of the kinds in `arrays`, in `tensors` or here of a call's arguments; a pickle
calls nothing of NumPy, torch or JAX. Start at `CONSTRUCTORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mixer_equiv.checkpoints.formats.pickles.arrays import ARRAYS, DTYPES
from mixer_equiv.checkpoints.formats.pickles.embedded import storage_in_bytes
from mixer_equiv.checkpoints.formats.pickles.machine import AttributeDict, Budget, Constructor, PickleError, as_key
from mixer_equiv.checkpoints.formats.pickles.tensors import STORAGE_KINDS, TENSORS


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
            budget.spend(copied=len(text))
            return text.encode("latin-1")
    raise PickleError("text that stands for bytes in some other code than latin1")


def _bytes(made: Callable[[bytes | bytearray], Any]) -> Constructor:
    def of(budget: Budget, arguments: tuple[Any, ...]) -> Any:
        match arguments:
            case ():
                return made(b"")
            case (bytes() | bytearray() as given,):
                budget.spend(copied=len(given))
                return made(given)
        raise PickleError("bytes of what are none")

    return of


class JoblibError(PickleError):
    """A pickle between whose parts the bytes of arrays stand, which joblib alone knows how to tell apart."""


def _of_joblib(budget: Budget, arguments: tuple[Any, ...]) -> Any:
    raise JoblibError(
        "was written by joblib, whose files are no plain pickles; load it where it was written, and save its arrays by "
        "name: np.savez('weights.npz', **arrays)"
    )


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
    "torch.storage._load_from_bytes": storage_in_bytes,
    **{f"joblib.numpy_pickle.{name}": _of_joblib for name in ("NumpyArrayWrapper", "NDArrayWrapper")},
}

CONSTANTS: Mapping[str, Any] = {
    **{name: dtype for name, dtype in DTYPES.items() if name.startswith("torch.")},
    **STORAGE_KINDS,
}
