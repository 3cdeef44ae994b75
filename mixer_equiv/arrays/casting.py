"""Arrays rounded to another dtype, which must hold them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mixer_equiv.arrays.chunks import PIECE
from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.arrays.lazy import Deferred, LazyArrays, as_lazy, gathered
from mixer_equiv.errors import MAX_LISTED, ConversionError


def cast(arrays: Mapping[str, np.ndarray], dtype: np.dtype) -> Mapping[str, np.ndarray]:
    """`arrays` as `dtype`, lazy if they are.

    Raises `ConversionError`, when the first such array is made, with the names of all of which a finite
    value would become infinite.
    """
    given = as_lazy(arrays)
    made = LazyArrays(
        {name: Deferred(spec.shape, dtype, partial(_cast, given, name, dtype)) for name, spec in given.specs.items()}
    )
    return made if given is arrays else gathered(made)


def _cast(arrays: LazyArrays, name: str, dtype: np.dtype) -> np.ndarray:
    result, fits = _rounded(arrays.strided(name), dtype)
    if not fits:
        lost = [name for name in arrays if not _rounded(arrays.strided(name), dtype)[1]]
        names = ", ".join(lost[:MAX_LISTED])
        raise ConversionError(f"{dtype} cannot hold values of {names}: they would become infinite")
    return result


def _rounded(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """The array as `dtype`, rounded to nearest, ties to even, and whether all that was finite is so still."""
    result, fits = np.empty_like(array, dtype), True
    whole, out = np.atleast_1d(array, result)
    rows = max(1, PIECE * len(whole) // max(1, whole.nbytes))
    twice = array.dtype == np.float64 and dtype == BFLOAT16
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs turn quiet
        for start in range(0, len(whole), rows):  # so that what is computed on the way is small
            part, made = whole[start : start + rows], out[start : start + rows]
            np.copyto(made, _to_odd(part) if twice else part, casting="unsafe")
            infinite = np.isinf(made)
            fits &= not (infinite.any() and np.any(infinite & np.isfinite(part)))
    return result, fits


def _to_odd(array: np.ndarray) -> np.ndarray:
    """float64 as float32 in such a way that bfloat16, which has over two bits less, is rounded once.

    That is towards zero, with the last bit set where something was cut off (Boldo and Melquiond 2008). ml_dtypes
    takes float64 through float32, and to nearest, where what is just over a tie becomes one.
    """
    nearest = array.astype(np.float32)
    finite, bits = np.isfinite(array), nearest.view(np.uint32)
    beyond = finite & (np.abs(nearest.astype(np.float64)) > np.abs(array))
    inexact = finite & (nearest != array)
    bits -= beyond
    bits |= inexact
    return nearest
