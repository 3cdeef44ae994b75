"""Random weights and images of a comparison, which leave nothing at its initial value."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
from einops import rearrange

from mixer_equiv.config import MixerConfig
from mixer_equiv.layouts import NEUTRAL, Layout
from mixer_equiv.random_weights import draw_params


def random_params(config: MixerConfig, seed: int) -> dict[str, np.ndarray]:
    """Draw canonical float64 weights, as `draw_params` does."""
    return draw_params(config, seed)


@dataclasses.dataclass(frozen=True)
class Size:
    """How random weights differ from the usual ones.

    LayerNorms and the head are `scale` times as large: the scale of a LayerNorm alone makes what follows large, since
    it gives values of unit size, and the mean over tokens makes them small again before the head. All else is `factor`
    times as large. Of `fresh` ones, LayerNorms and biases are as a model is made with.
    """

    scale: float = 1.0
    factor: float = 1.0
    fresh: bool = False

    def of(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Canonical weights of this size, made of usual ones."""
        return {name: self._resized(name, array) for name, array in params.items()}

    def _resized(self, name: str, array: np.ndarray) -> np.ndarray:
        neutral = NEUTRAL.get(name.rpartition("/")[2])
        if self.fresh and neutral is not None:
            return np.full_like(array, neutral)
        is_scaled = "norm" in name.lower() or name.startswith("head/")
        factor = self.scale if is_scaled else self.factor
        return array if factor == 1 else array * factor


USUAL = Size()


def random_images(config: MixerConfig, seed: int) -> np.ndarray:
    """Draw float64 images (batch, height, width, channels): 8, or 4 for a large model.

    In turns standard normal and Student-t with two degrees of freedom, whose tails reach what code cuts off.
    """
    count = 4 if config.macs > 1e9 else 8
    rng = np.random.default_rng([seed, 1])
    shape = config.image_hw[0], config.image_hw[1], config.in_channels
    kinds = rng.standard_normal, partial(rng.standard_t, 2)
    return np.stack([kinds[i % len(kinds)](size=shape) for i in range(count)])


def constrained(params: Mapping[str, np.ndarray], layout: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
    """Change canonical weights so that the layout can hold them.

    Parameters that are one array there get the same values, and absent ones are neutral.
    """
    held: dict[str, np.ndarray] = {}
    result = {}
    for name, binding in layout.bindings(config.num_blocks).items():
        if name in params and binding.is_absent:
            result[name] = np.full_like(params[name], NEUTRAL[name.rpartition("/")[2]])
        elif name in params:
            there = partial(_rearranged, sizes=config.axis_sizes, axes=binding.row.axes)
            canonical, foreign = binding.row.canonical_axes, binding.row.foreign_axes
            if binding.foreign not in held:
                held[binding.foreign] = there(params[name], f"{canonical} -> {foreign}")
            result[name] = there(held[binding.foreign], f"{foreign} -> {canonical}")
    return result


def _rearranged(array: np.ndarray, pattern: str, *, sizes: Mapping[str, int], axes: Collection[str]) -> np.ndarray:
    made: np.ndarray = rearrange(array, pattern, **{axis: sizes[axis] for axis in axes})
    return made
