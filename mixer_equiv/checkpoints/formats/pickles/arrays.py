"""Arrays and dtypes of NumPy and JAX, made of what pickles say of them.

Start at `PickledArray`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mixer_equiv.checkpoints.formats.pickles.machine import Budget, Constructor, Global, PickleError

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

# NumPy has no arrays of more.
MAX_AXES = 64


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
    """An array in the making: `build` gives it shape, dtype and numbers.

    `array` is None for one of Python objects; where it holds a single object, that is `only`.
    """

    def __init__(self) -> None:
        self.array: np.ndarray | None = None
        self.only: Any = None

    def build(self, state: Any) -> None:
        match state:
            case (int(), tuple() as shape, PickledDtype() as kind, fortran, bytes() | bytearray() as numbers):
                self.array = _array(kind, shape, numbers, "F" if fortran else "C")
            case (int(), () | (1,), PickledDtype(dtype=None), _, [only]):
                self.only = only
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
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES or not all(map(is_count, shape)):
        raise PickleError(f"an array has the shape {reprlib.repr(shape)}")
    if math.prod(size for size in shape if size) >= 2**48:
        raise PickleError(f"an array has the shape {shape}, which no memory can hold")
    return shape


def is_count(value: Any) -> bool:
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


_NUMPY = "numpy.core.multiarray", "numpy._core.multiarray"

ARRAYS: Mapping[str, Constructor] = {
    "numpy.dtype": _dtype,
    **{f"{module}._reconstruct": _reconstruct for module in _NUMPY},
    **{f"{module}.scalar": _scalar for module in _NUMPY},
    **{f"{module}._frombuffer": _frombuffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
    "jax._src.array._reconstruct_array": _of_jax,
}
