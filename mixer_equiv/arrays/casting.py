"""`cast`: arrays rounded to another dtype, refused where finite values would become infinite."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mixer_equiv.arrays.chunks import CHUNK_BYTES
from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.arrays.lazy import Deferred, LazyArrays, as_lazy, materialize
from mixer_equiv.errors import MAX_LISTED, ConversionError


def cast(
    arrays: Mapping[str, np.ndarray], dtype: np.dtype, *, chunk_bytes: int = CHUNK_BYTES
) -> Mapping[str, np.ndarray]:
    """`arrays` as `dtype`, lazy if they are. Each is rounded in chunks of about `chunk_bytes`.

    Raises `ConversionError`, at the first array in which a finite value would become infinite, with the
    names of all such arrays.
    """
    lazy = as_lazy(arrays)
    rounded = {
        name: Deferred(spec.shape, dtype, partial(_cast, lazy, name, dtype, chunk_bytes))
        for name, spec in lazy.specs.items()
    }
    return materialize(LazyArrays(rounded), like=arrays)


def _cast(arrays: LazyArrays, name: str, dtype: np.dtype, chunk_bytes: int) -> np.ndarray:
    result, fits = _round(arrays.strided(name), dtype, chunk_bytes)
    if not fits:
        lost = [name for name in arrays if not _round(arrays.strided(name), dtype, chunk_bytes)[1]]
        names = ", ".join(lost[:MAX_LISTED])
        raise ConversionError(f"{dtype} cannot hold values of {names}: they would become infinite")
    return result


def _round(array: np.ndarray, dtype: np.dtype, chunk_bytes: int) -> tuple[np.ndarray, bool]:
    """Round to nearest, ties to even; also tell whether every finite element is still finite."""
    result, fits = np.empty_like(array, dtype), True
    whole, out = np.atleast_1d(array, result)
    rows = max(1, chunk_bytes * len(whole) // max(1, whole.nbytes))
    to_odd_first = array.dtype == np.float64 and dtype == BFLOAT16
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs turn quiet
        for start in range(0, len(whole), rows):  # in chunks, which keeps the intermediate arrays small
            source, target = whole[start : start + rows], out[start : start + rows]
            np.copyto(target, _round_to_odd(source) if to_odd_first else source, casting="unsafe")
            infinite = np.isinf(target)
            fits &= not (infinite.any() and np.any(infinite & np.isfinite(source)))
    return result, fits


def _round_to_odd(array: np.ndarray) -> np.ndarray:
    """Round float64 to float32 such that a second rounding, to bfloat16, gives what a single one would.

    Rounding to odd cuts towards zero and sets the last bit where something was cut off; with over two bits to
    spare it makes double rounding harmless (Boldo and Melquiond 2008). ml_dtypes takes float64 to bfloat16 through
    float32 rounded to nearest, which turns values just over a tie into ties.
    """
    nearest = array.astype(np.float32)
    finite, bits = np.isfinite(array), nearest.view(np.uint32)
    beyond = finite & (np.abs(nearest.astype(np.float64)) > np.abs(array))
    inexact = finite & (nearest != array)
    bits -= beyond
    bits |= inexact
    return nearest
