"""Faults of ports planted in weights: official weights handed over wrongly.

They are for the kill matrix of `mixer-equiv mutate`; diagnosis does not know of this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.drawn_weights import random_params

Arrays = Mapping[str, np.ndarray]

# From canonical weights to the ones that are handed over in their place.
HandOver = Callable[[Arrays, MixerConfig], Arrays]


@dataclasses.dataclass(frozen=True)
class PlantedWeights:
    """A fault of the catalogue, by its id, planted in weights that are in `dtype` at first."""

    fault: str
    hand_over: HandOver
    dtype: Any = np.float32


def _swapped(old: str, new: str) -> HandOver:
    def swapped(weights: Arrays, config: MixerConfig) -> Arrays:
        names = {name: name.replace(old, "?").replace(new, old).replace("?", new) for name in weights}
        return {names[name]: array for name, array in weights.items()}

    return swapped


def _changed(end: str, change: Callable[[np.ndarray], np.ndarray]) -> HandOver:
    """Change the arrays whose names end in `end`."""
    return lambda weights, config: {n: change(array) if n.endswith(end) else array for n, array in weights.items()}


def _sorted_as_strings(weights: Arrays, config: MixerConfig) -> Arrays:
    order = sorted(range(config.num_blocks), key=str)
    names = {f"MixerBlock_{i}/": f"MixerBlock_{order[i]}/" for i in range(config.num_blocks)}
    return {
        name: weights[next((name.replace(old, new) for old, new in names.items() if name.startswith(old)), name)]
        for name in weights
    }


def _columns_first(weights: Arrays, config: MixerConfig) -> Arrays:
    rows, columns = config.grid_hw
    order = np.arange(rows * columns).reshape(rows, columns).T.ravel()
    first = _changed("token_mixing/Dense_0/kernel", lambda kernel: kernel[order])(weights, config)
    last = _changed("token_mixing/Dense_1/kernel", lambda kernel: kernel[:, order])(first, config)
    return _changed("token_mixing/Dense_1/bias", lambda bias: bias[order])(last, config)


def _cast(dtype: Any, *, back: bool = True) -> HandOver:
    """Round all arrays to another dtype, and widen them to their own again."""
    return lambda weights, config: {
        name: array.astype(dtype).astype(array.dtype if back else dtype) for name, array in weights.items()
    }


def _head_reversed(weights: Arrays, config: MixerConfig) -> Arrays:
    return {name: array[::-1].copy() if name.startswith("head/") else array for name, array in weights.items()}


def _first_not_finite(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


PLANTED_WEIGHTS: dict[str, PlantedWeights] = {
    "square kernel not transposed": PlantedWeights("kernel_not_transposed", _changed("Dense_0/kernel", np.transpose)),
    "LayerNorms swapped": PlantedWeights("norms_swapped", _swapped("LayerNorm_0", "LayerNorm_1")),
    "token and channel MLP swapped": PlantedWeights("mlps_swapped", _swapped("token_mixing", "channel_mixing")),
    "blocks in the order of strings": PlantedWeights("blocks_reordered", _sorted_as_strings),
    "two blocks swapped": PlantedWeights("blocks_moved", _swapped("MixerBlock_4/", "MixerBlock_7/")),
    "patches flattened otherwise": PlantedWeights(
        "stem_flattened", _changed("stem/kernel", lambda kernel: kernel.transpose(2, 0, 1, 3).reshape(kernel.shape))
    ),
    "height and width swapped": PlantedWeights(
        "stem_hw_swapped", _changed("stem/kernel", lambda kernel: kernel.swapaxes(0, 1))
    ),
    "tokens by columns": PlantedWeights("tokens_by_columns", _columns_first),
    "a bias zeroed": PlantedWeights("zeroed", _changed("MixerBlock_7/channel_mixing/Dense_0/bias", np.zeros_like)),
    "head not loaded": PlantedWeights("head_not_loaded", _head_reversed),
    "rounded to bfloat16": PlantedWeights("rounded_to_bfloat16", _cast(BFLOAT16)),
    "rounded to float16": PlantedWeights("rounded_to_float16", _cast(np.float16)),
    "rounded to float32": PlantedWeights("rounded_to_float32", _cast(np.float32), np.float64),
    "widened to float64": PlantedWeights("dtype", _cast(np.float64, back=False)),
    "one weight off by one ulp": PlantedWeights(
        "last_place", _changed("MixerBlock_11/LayerNorm_1/scale", lambda scale: np.nextafter(scale, np.float32(9)))
    ),
    "one weight NaN": PlantedWeights("not_finite", _changed("MixerBlock_3/LayerNorm_0/bias", _first_not_finite)),
    "one array of another training": PlantedWeights(
        "weights", _changed("MixerBlock_5/channel_mixing/Dense_1/kernel", lambda kernel: 1.01 * kernel)
    ),
}


def initial(config: MixerConfig, seed: int, *, everything: bool, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Canonical weights of a fresh official model, with a head of zeros; or `everything` random."""
    weights = {name: array.astype(dtype) for name, array in random_params(config, seed).items()}
    for name, array in weights.items() if not everything else ():
        if not name.endswith("kernel") or name.startswith("head/"):
            array[...] = 1 if name.endswith("scale") else 0
    return weights
