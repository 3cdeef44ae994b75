"""Compare two sets of weights bit by bit, and explain their differences by the known faults of ports.

Weights are arrays by canonical names. Faults are named by their ids in the catalogue of faults, which has the words.
Start at `bit_differences` for the arrays that differ, and at `port_faults` for why.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mixer_equiv.config import PATCH_AXES, MixerConfig

Arrays = Mapping[str, np.ndarray]

# Gives the array that a port with a fault would have under a name; None where it would have none, or the right one.
Rewrite = Callable[[Arrays, str, MixerConfig], np.ndarray | None]


class PortFault(NamedTuple):
    """A fault of a port: its id, the canonical names of the arrays that show it, and what its words leave open.

    `detail` is the order of axes of "stem_flattened", and the dtypes of "dtype". The fault "weights" is that of arrays
    that no other fault explains.
    """

    fault: str
    arrays: list[str]
    detail: str


def bit_differences(a: Arrays, b: Arrays) -> list[str]:
    """Names of the arrays that are not the same in dtype, shape and every bit, or are in one of the two alone."""
    return [name for name in {**a, **b} if name not in a or name not in b or not same_bits(a[name], b[name])]


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have the same dtype, shape and bits, whatever their order in memory."""
    return x.dtype == y.dtype and x.shape == y.shape and np.array_equal(_bytes(x), _bytes(y))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def port_faults(a: Arrays, b: Arrays, config: MixerConfig) -> Iterator[PortFault]:
    """Explain the arrays of `b` that are not those of `a`, both by canonical names; the rest are "weights"."""
    groups: dict[str, dict[str, str]] = {}
    for name in bit_differences(a, b):
        comparable = name in a and name in b and a[name].shape == b[name].shape
        found = _explain(a, name, b[name], config) if comparable else _Explanation("weights")
        groups.setdefault(found.fault, {})[name] = found.detail
    if groups.keys() == {"weights"} and groups["weights"].keys() == {"head/kernel", "head/bias"}:
        groups = {"head_not_loaded": groups["weights"]}
    for fault, details in groups.items():
        yield PortFault(fault, list(details), ", ".join(dict.fromkeys(details.values())))


class _Explanation(NamedTuple):
    fault: str
    detail: str = ""


def _explain(weights: Arrays, name: str, ported: np.ndarray, config: MixerConfig) -> _Explanation:
    """The fault that made the array called `name` into `ported`, of the same shape."""
    array = weights[name]
    if _same_values(array, ported):
        return _Explanation("dtype", str(ported.dtype))
    for fault, rewrite in REWRITES.items():
        rewritten = rewrite(weights, name, config)
        if rewritten is not None and _same_values(rewritten, ported):
            return _Explanation(fault)
    if name == "stem/kernel" and (axes := _axes_flattened(array, ported)) is not None:
        return _Explanation("stem_flattened", axes)
    if _is_in_another_block(weights, name, ported, config):
        return _Explanation("blocks_moved")
    if not np.isfinite(ported.astype(np.float64)).all() and np.isfinite(array.astype(np.float64)).all():
        return _Explanation("not_finite")
    if array.dtype == ported.dtype and _ulps(array, ported) <= 2:
        return _Explanation("last_place")
    return _Explanation("weights")


def _transposed(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    array = weights[name]
    return array.T if array.ndim == 2 else None


def _swapped(one: str, other: str) -> Rewrite:
    def swapped(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
        source = re.sub(f"{one}|{other}", lambda found: other if found[0] == one else one, name)
        return weights.get(source) if source != name else None

    return swapped


def _blocks_as_strings(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    """As strings, MixerBlock_10 sorts before MixerBlock_2."""
    block = re.match(r"MixerBlock_(\d+)/(.*)", name)
    if block is None:
        return None
    order = sorted(range(config.num_blocks), key=str)
    return weights[f"MixerBlock_{order[int(block[1])]}/{block[2]}"]


def _stem_by_width(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    square = name == "stem/kernel" and config.patch_hw[0] == config.patch_hw[1] > 1
    return weights[name].swapaxes(0, 1) if square else None


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


# The first that gives the ported array is named, so those that can coincide with it by chance more rarely come first.
REWRITES: dict[str, Rewrite] = {
    "kernel_not_transposed": _transposed,
    "norms_swapped": _swapped("LayerNorm_0", "LayerNorm_1"),
    "mlps_swapped": _swapped("token_mixing", "channel_mixing"),
    "blocks_reordered": _blocks_as_strings,
    "stem_hw_swapped": _stem_by_width,
    "tokens_by_columns": _tokens_by_columns,
    "zeroed": _zeros,
    "rounded_to_bfloat16": _rounded(np.dtype(ml_dtypes.bfloat16)),
    "rounded_to_float16": _rounded(np.dtype(np.float16)),
    "rounded_to_float32": _rounded(np.dtype(np.float32)),
}

# Ids of all faults that `port_faults` can name.
PORT_FAULTS = (
    *REWRITES,
    *("stem_flattened", "blocks_moved", "dtype", "last_place", "not_finite", "head_not_loaded", "weights"),
)


def _axes_flattened(kernel: np.ndarray, ported: np.ndarray) -> str | None:
    """The order of axes in which patches were flattened, if that makes the stem's kernel into `ported`."""
    for order in itertools.permutations(range(len(PATCH_AXES))):
        if _same_values(kernel.transpose(*order, 3).reshape(kernel.shape), ported):
            return " ".join(PATCH_AXES[i] for i in order)
    return None


def _is_in_another_block(weights: Arrays, name: str, ported: np.ndarray, config: MixerConfig) -> bool:
    """Whether `ported` is the parameter of the same name of another block."""
    block, _, parameter = name.partition("/")
    if not block.startswith("MixerBlock_"):
        return False
    others = (f"MixerBlock_{i}/{parameter}" for i in range(config.num_blocks) if f"MixerBlock_{i}" != block)
    return any(_same_values(weights[other], ported) for other in others)


def _same_values(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True)


def _ulps(x: np.ndarray, y: np.ndarray) -> float:
    """The largest distance in units in the last place of `x`."""
    if x.dtype not in (np.float32, np.float64):
        return np.inf
    with np.errstate(all="ignore"):
        distance = np.abs(x - y) / np.spacing(np.maximum(np.abs(x), np.abs(y)))
    return float(np.max(np.where(x == y, 0, distance), initial=0.0))
