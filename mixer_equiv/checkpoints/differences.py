"""How weights were handed over wrongly: what ports are known to do to arrays, and which of it these arrays show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from mixer_equiv.config import MixerConfig

Arrays = Mapping[str, np.ndarray]
# From all weights of the one side and a name to what the other then has under this name, None if it cannot be.
Handover = Callable[[Arrays, str, MixerConfig], np.ndarray | None]


def _transposed(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray | None:
    array = weights[name]
    return array.T if array.ndim == 2 and array.shape[0] == array.shape[1] else None


def _renamed(old: str, new: str) -> Handover:
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


def _rounded(dtype: np.dtype) -> Handover:
    def rounded(weights: Arrays, name: str, config: MixerConfig) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return weights[name].astype(dtype)

    return rounded


# In this order: the first that holds for an array is named, the rarer coincidence first.
HANDOVERS: dict[str, tuple[str, Handover]] = {
    "kernel_not_transposed": ("square kernels are transposed", _transposed),
    "norms_swapped": ("LayerNorm_0 and LayerNorm_1 are in each other's place", _renamed("LayerNorm_0", "LayerNorm_1")),
    "mlps_swapped": (
        "token_mixing and channel_mixing are in each other's place",
        _renamed("token_mixing", "channel_mixing"),
    ),
    "blocks_reordered": ("blocks are in the order of their names as strings: 0, 1, 10, 11, 2", _blocks_as_strings),
    "stem_hw_swapped": ("height and width of the patch are swapped in the stem", _stem_by_width),
    "tokens_by_columns": ("tokens are in the order of columns", _tokens_by_columns),
    "zeroed": ("all zeros", _zeros),
    "rounded_to_bfloat16": ("rounded to bfloat16", _rounded(np.dtype(ml_dtypes.bfloat16))),
    "rounded_to_float16": ("rounded to float16", _rounded(np.dtype(np.float16))),
    "rounded_to_float32": ("rounded to float32", _rounded(np.dtype(np.float32))),
}


def explained(a: Arrays, b: Arrays, config: MixerConfig) -> Iterator[tuple[str, str, list[str]]]:
    """What turned arrays of `a` into those of `b`: its name, in words, and the arrays; the rest under "weights"."""
    groups: dict[str, list[str]] = {}
    words = {"weights": "others"}
    for name in differing(a, b):
        found, text = _of_one(a, b, name, config)
        groups.setdefault(found, []).append(name)
        words[found] = text
    if groups.keys() == {"weights"} and set(groups["weights"]) == {"head/kernel", "head/bias"}:
        yield "head_not_loaded", "another head", groups["weights"]
        return
    for found, names in groups.items():
        yield found, words[found], names


def _of_one(a: Arrays, b: Arrays, name: str, config: MixerConfig) -> tuple[str, str]:
    if name not in a or name not in b or a[name].shape != b[name].shape:
        return "weights", "others"
    if _same(a[name], b[name]):
        return "dtype", f"the same values as {b[name].dtype}"
    for handover, (text, function) in HANDOVERS.items():
        made = function(a, name, config)
        if made is not None and _same(made, b[name]):
            return handover, text
    if name == "stem/kernel":
        for order in itertools.permutations(range(3)):
            made = _stem_flattened(a, name, config, order)
            if made is not None and _same(made, b[name]):
                axes = " ".join(("ph", "pw", "channels")[i] for i in order)
                return "stem_flattened", f"patches flattened as ({axes})"
    if _block_that_has(a, name, b[name], config) is not None:
        return "blocks_moved", "blocks are in another order"
    if not np.isfinite(b[name].astype(np.float64)).all() and np.isfinite(a[name].astype(np.float64)).all():
        return "not_finite", "NaN or infinity"
    if a[name].dtype == b[name].dtype and _ulps(a[name], b[name]) <= 2:
        return "last_place", "one or two units in the last place"
    return "weights", "others"


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
