"""How two sets of weights differ, bit by bit, and what a port did to them that makes them so.

Weights are arrays under canonical names. Faults are named by their ids in the catalogue of faults, which has the words.
Start reading at `port_faults`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mixer_equiv.config import MixerConfig

Arrays = Mapping[str, np.ndarray]
# From all weights of one side and a name to the array that the other then has under this name; None if there is none.
Rewrite = Callable[[Arrays, str, MixerConfig], np.ndarray | None]


def _transposed(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    array = weights[name]
    return array.T if array.ndim == 2 and array.shape[0] == array.shape[1] else None


def _renamed(old: str, new: str) -> Rewrite:
    def swapped(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
        other = re.sub(f"{old}|{new}", lambda found: new if found[0] == old else old, name)
        same = other != name and other in weights and weights[other].shape == weights[name].shape
        return weights[other] if same else None

    return swapped


def _blocks_as_strings(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    """MixerBlock_10 sorts before MixerBlock_2."""
    block = re.match(r"MixerBlock_(\d+)/(.*)", name)
    if block is None:
        return None
    order = sorted(range(config.num_blocks), key=str)
    return weights[f"MixerBlock_{order[int(block[1])]}/{block[2]}"]


def _stem_by_width(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    square = name == "stem/kernel" and config.patch_hw[0] == config.patch_hw[1] > 1
    return weights[name].swapaxes(0, 1) if square else None


def _stem_flattened(weights: Arrays, name: str, config: MixerConfig, order: tuple[int, ...]) -> np.ndarray | None:
    kernel = weights[name]
    return kernel.transpose(*order, 3).reshape(kernel.shape) if name == "stem/kernel" else None


def _tokens_by_columns(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    axis = _TOKEN_AXES.get(name.partition("/token_mixing/")[2])
    rows, columns = config.grid_hw
    if axis is None or 1 in (rows, columns):
        return None
    return weights[name].take(np.arange(rows * columns).reshape(rows, columns).T.reshape(-1), axis)


_TOKEN_AXES = {"Dense_0/kernel": 0, "Dense_1/kernel": 1, "Dense_1/bias": 0}


def _zeros(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray:
    return np.zeros_like(weights[name])


def _rounded(dtype: np.dtype) -> Rewrite:
    def rounded(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return weights[name].astype(dtype)

    return rounded


# By the fault that they are. The first one that holds for an array is named, so that the rarer coincidence comes first.
REWRITES: dict[str, Rewrite] = {
    "kernel_not_transposed": _transposed,
    "norms_swapped": _renamed("LayerNorm_0", "LayerNorm_1"),
    "mlps_swapped": _renamed("token_mixing", "channel_mixing"),
    "blocks_reordered": _blocks_as_strings,
    "stem_hw_swapped": _stem_by_width,
    "tokens_by_columns": _tokens_by_columns,
    "zeroed": _zeros,
    "rounded_to_bfloat16": _rounded(np.dtype(ml_dtypes.bfloat16)),
    "rounded_to_float16": _rounded(np.dtype(np.float16)),
    "rounded_to_float32": _rounded(np.dtype(np.float32)),
}

# All that `port_faults` can name.
PORT_FAULTS = (
    *REWRITES,
    *("stem_flattened", "blocks_moved", "dtype", "last_place", "not_finite", "head_not_loaded", "weights"),
)


class PortFault(NamedTuple):
    """A fault of a port: its id, the canonical names of the arrays that show it, and what its words leave open."""

    fault: str
    arrays: list[str]
    detail: str


def port_faults(a: Arrays, b: Arrays, config: MixerConfig) -> Iterator[PortFault]:
    """Explain the arrays of `b` that are not those of `a`, both under canonical names; the rest are "weights"."""
    groups: dict[str, dict[str, str]] = {}
    for name in differing(a, b):
        fault, detail = _fault_of_one(a, b, name, config)
        groups.setdefault(fault, {})[name] = detail
    if groups.keys() == {"weights"} and groups["weights"].keys() == {"head/kernel", "head/bias"}:
        groups = {"head_not_loaded": groups["weights"]}
    for fault, details in groups.items():
        yield PortFault(fault, list(details), ", ".join(dict.fromkeys(details.values())))


_WEIGHTS = "weights", ""


def _fault_of_one(a: Arrays, b: Arrays, name: str, config: MixerConfig) -> tuple[str, str]:
    """The fault that an array shows, and its detail."""
    if name not in a or name not in b or a[name].shape != b[name].shape:
        return _WEIGHTS
    if _same(a[name], b[name]):
        return "dtype", str(b[name].dtype)
    for fault, rewrite in REWRITES.items():
        made = rewrite(a, name, config)
        if made is not None and _same(made, b[name]):
            return fault, ""
    if name == "stem/kernel":
        for order in itertools.permutations(range(3)):
            made = _stem_flattened(a, name, config, order)
            if made is not None and _same(made, b[name]):
                return "stem_flattened", " ".join(("ph", "pw", "channels")[i] for i in order)
    if _block_that_has(a, name, b[name], config) is not None:
        return "blocks_moved", ""
    if not np.isfinite(b[name].astype(np.float64)).all() and np.isfinite(a[name].astype(np.float64)).all():
        return "not_finite", ""
    if a[name].dtype == b[name].dtype and _ulps(a[name], b[name]) <= 2:
        return "last_place", ""
    return _WEIGHTS


def _block_that_has(weights: Arrays, name: str, array: np.ndarray, config: MixerConfig) -> int | None:
    """Another block of which this array is the parameter of the same name."""
    _, slash, rest = name.partition("/")
    others = (i for i in range(config.num_blocks) if f"MixerBlock_{i}{slash}{rest}" != name)
    in_block = name.startswith("MixerBlock_")
    return next((i for i in others if in_block and _same(weights[f"MixerBlock_{i}/{rest}"], array)), None)


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True)


def _ulps(x: np.ndarray, y: np.ndarray) -> float:
    """The largest distance in units in the last place of `x`."""
    if x.dtype not in (np.float32, np.float64):
        return np.inf
    with np.errstate(all="ignore"):
        distance = np.abs(x - y) / np.spacing(np.maximum(np.abs(x), np.abs(y)))
    return float(np.max(np.where(x == y, 0, distance), initial=0.0))


def differing(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not the same in dtype, shape and every bit."""
    return [name for name in {**a, **b} if name not in a or name not in b or not _same_bits(a[name], b[name])]


def _same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return np.array_equal(_bytes(x), _bytes(y))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
