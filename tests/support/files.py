"""Files and arrays of tests: weights of arbitrary bits, comparisons to the last byte, a disk that is full."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params


def arbitrary_bits(dtype: str) -> dict[str, np.ndarray]:
    """Canonical weights of random bits, each array with -0, a denormal, infinity and its negative put in front."""
    wanted = np.dtype(dtype)
    rng = np.random.default_rng(11)
    params = {}
    for name, array in random_params(DEFAULT_CONFIG, 0).items():
        bits = rng.integers(0, 256, array.size * wanted.itemsize, dtype=np.uint8).view(wanted)
        bits[:4] = np.array([-0.0, ml_dtypes.finfo(wanted).smallest_subnormal, np.inf, -np.inf], wanted)
        params[name] = bits.reshape(array.shape)
    return params


def changed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not the same in dtype, shape and every byte."""
    sides = [{name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()} for arrays in (before, after)]
    return [name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """What every file below `folder` holds; None for a directory."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing more than `size` bytes fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
