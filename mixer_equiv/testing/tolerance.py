"""`compare`: the distance of two arrays, or sets of them, and the tolerances at which they would pass.

It compares what it is given and runs no model; `assertions` holds the comparison of two Mixers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import flatten, is_array, to_numpy
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.errors import ConfigError, ConversionError


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The distance of two arrays, or sets of them.

    `passes` tells whether every element is within `atol + rtol * |expected|`. `min_rtol` is the least `rtol`
    that would pass with this `atol`, and `min_atol` the least `atol` with this `rtol`. `max_abs` is the largest
    difference of two elements, `max_rel` the largest one relative to the expected element, and `residual` the
    difference relative in the 2-norm. `worst` is the name and index of the largest excess; `mismatched` of `size`
    elements do not pass.
    """

    passes: bool
    rtol: float
    atol: float
    min_rtol: float
    min_atol: float
    max_abs: float
    max_rel: float
    residual: float
    worst: str
    mismatched: int
    size: int

    def __bool__(self) -> bool:
        return self.passes

    def __str__(self) -> str:
        verdict = "within" if self.passes else f"{self.mismatched:,} of {self.size:,} elements are not within"
        return (
            f"{verdict} rtol {self.rtol:g}, atol {self.atol:g}: max |difference| {self.max_abs:.1e}, relative "
            f"{self.max_rel:.1e}, in the 2-norm {self.residual:.1e}, worst at {self.worst}; the least that passes is "
            f"rtol {self.min_rtol:.1e} with this atol, or atol {self.min_atol:.1e} with this rtol"
        )


def compare(actual: Any, expected: Any, *, rtol: float = 1e-7, atol: float = 0.0) -> Comparison:
    """Compare arrays, or arrays by name, of any frameworks; `print(result)` shows the tolerances that would pass.

    An element passes if |actual - expected| <= atol + rtol * |expected|, as in NumPy; NaN never does.
    Raises `ConversionError` for different names or shapes, for nothing to compare, and for integers
    that float64 cannot hold; `ConfigError` for a tolerance that is negative or not finite.
    """
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not 0 <= tolerance < np.inf:
            raise ConfigError(f"{name} is {tolerance!r}; it must be a number of at least 0")
    ours, theirs = _by_name(actual), _by_name(expected)
    problems = [f"{name or 'an array'} is only in one of the two" for name in sorted(ours.keys() ^ theirs.keys())]
    problems += [
        f"{name or 'the array'} is {ours[name].shape} in one and {theirs[name].shape} in the other"
        for name in ours
        if name in theirs and ours[name].shape != theirs[name].shape
    ]
    if problems or not any(array.size for array in ours.values()):
        raise ConversionError("; ".join(problems) or "there is nothing to compare: no array has an element")
    x, y = (np.concatenate([array.reshape(-1) for array in (side[n] for n in ours)]) for side in (ours, theirs))
    with np.errstate(all="ignore"):
        distance, size = np.abs(x - y), np.abs(y)
        distance = np.where(x == y, 0.0, np.where(np.isnan(distance), np.inf, distance))
        relative = np.where(distance == 0, 0.0, distance / size)
        needed = np.where(distance <= atol, 0.0, (distance - atol) / size)
        min_rtol = float(np.max(np.where(np.isnan(needed), np.inf, needed), initial=0.0))
        excess = distance - rtol * np.where(np.isfinite(size), size, 0.0)
    bad = excess > atol
    return Comparison(
        passes=not bad.any(),
        rtol=rtol,
        atol=atol,
        min_rtol=min_rtol,
        min_atol=float(max(excess.max(initial=0.0), 0.0)),
        max_abs=float(distance.max(initial=0.0)),
        max_rel=float(relative.max(initial=0.0)),
        residual=residual(distance, np.zeros_like(distance), y) if distance.any() else 0.0,
        worst=_place(ours, int(excess.argmax())),
        mismatched=int(bad.sum()),
        size=int(x.size),
    )


def _by_name(value: Any) -> dict[str, np.ndarray]:
    """Arrays in float64 by name; a single array is called ""."""
    leaves = flatten(value) if isinstance(value, Mapping) else [("", value)]
    return {name: _wide(name or "array", leaf if is_array(leaf) else np.asarray(leaf)) for name, leaf in leaves}


def _wide(name: str, array: Any) -> np.ndarray:
    given = to_numpy(name, array)
    wide = given.astype(np.float64)
    if given.dtype.kind in "iu" and not np.array_equal(wide.astype(given.dtype), given):
        raise ConversionError(f"{name} holds whole numbers of {given.dtype} that float64 cannot tell apart")
    return wide


def _place(arrays: Mapping[str, np.ndarray], flat: int) -> str:
    """The name and index of an element, given its index in all arrays joined."""
    for name, array in arrays.items():
        if flat < array.size:
            index = ", ".join(map(str, np.unravel_index(flat, array.shape))) if array.ndim else ""
            return f"{name}[{index}]"
        flat -= array.size
    return "nothing"
