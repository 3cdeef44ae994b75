"""Draws of weights and images of one shape, stacked along a first axis, and their conversion to torch and back.

Start reading at `Stack`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from mixer_equiv import Checkpoint, MixerConfig, convert
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.judge.gradients import random_cotangent
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LINEN, TORCH, Layout

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stack:
    """Draws of one shape: each array has the draws as its first axis, and is float64 when drawn.

    `params` are canonical weights; `images` are (draws, batch, height, width, channels). Outputs are multiplied by
    `cotangents` (draws, batch, classes) to make the number that is differentiated.
    """

    config: MixerConfig
    params: Arrays
    images: np.ndarray
    cotangents: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def only(self, draw: int) -> Stack:
        """Make a stack of this draw alone."""
        own = slice(draw, draw + 1)
        params = {name: array[own] for name, array in self.params.items()}
        return Stack(self.config, params, self.images[own], self.cotangents[own])

    def astype(self, dtype: DTypeLike) -> Stack:
        """Round the draws to another dtype."""
        params = {name: array.astype(dtype) for name, array in self.params.items()}
        return Stack(self.config, params, self.images.astype(dtype), self.cotangents.astype(dtype))


def draw_stack(config: MixerConfig, count: int, batch: int, seed: int) -> Stack:
    """Draw all weights and `batch` images `count` times; images are normal and Student-t (2 degrees) in turns."""
    rng = np.random.default_rng([seed, 1])
    images = rng.standard_normal((count, batch, *config.image_hw, config.in_channels))
    images[:, 1::2] = rng.standard_t(2, images[:, 1::2].shape)
    cotangents = random_cotangent(config, count * batch, seed).reshape(count, batch, -1)
    params = _stacked([random_params(config, seed * count + i) for i in range(count)])
    return Stack(config, params, images, cotangents)


def convert_stack(stack: Stack) -> dict[str, np.ndarray]:
    """Convert the weights of every draw to torch's names.

    All draws have the same names and shapes, so that the strict `convert` checks one draw. The others go through the
    function by which `convert` moves numbers.
    """
    state = relabel_stack(stack.params, LINEN, TORCH, stack.config)
    first = Checkpoint.from_arrays({name: array[0] for name, array in stack.params.items()}, config=stack.config)
    strict = convert(first, to="torch", from_="linen").arrays
    assert not bit_differences(strict, {name: array[0] for name, array in state.items()})
    return state


def relabel_stack(arrays: Arrays, source: Layout, target: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
    """Give stacked arrays the names and axes of another layout, draw by draw."""
    count = len(next(iter(arrays.values())))
    draws = ({name: array[i] for name, array in arrays.items()} for i in range(count))
    return _stacked([relabel(each, source, target, config) for each in draws])


def _stacked(draws: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([each[name] for each in draws]) for name in draws[0]}
