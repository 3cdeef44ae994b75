"""Arrays rounded to another dtype, which must hold them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mixer_equiv import strict
from mixer_equiv.errors import ConversionError
from mixer_equiv.lazy import Deferred, LazyArrays, as_lazy, gathered


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
        names = ", ".join(lost[: strict.SHOWN])
        raise ConversionError(f"{dtype} cannot hold values of {names}: they would become infinite")
    return result


def _rounded(array: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, bool]:
    """The array as `dtype`, and whether all that was finite is so still."""
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs turn quiet
        result = array.astype(dtype)
        infinite = np.isinf(result)
        return result, not (infinite.any() and np.any(infinite & np.isfinite(array)))
