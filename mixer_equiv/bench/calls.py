"""An entry in a cell as something to call, and the weights and images that every call of a cell is given.

The calls themselves are in `torch_calls` and `jax_calls`. Start reading at `Call`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.judge.gradients import random_cotangent
from mixer_equiv.random_weights import draw_images, draw_params

# A batch repeats this many different images, in no order that a program could use.
DISTINCT_IMAGES = 2

# Changes to the usual draw of weights. The stem and the last layer of every MLP, whose outputs add up to the residual
# stream, are multiplied by this factor and the root of the eps.
STREAM_SCALES = {"usual": None, "faint": 2.0}


class Inputs(NamedTuple):
    """Float64 canonical weights, images (2, height, width, channels) and cotangents (2, classes)."""

    params: Mapping[str, np.ndarray]
    images: np.ndarray
    cotangents: np.ndarray


class Call(Protocol):
    """An entry in a cell. Calling it computes once, and returns when the computation is done."""

    def __call__(self) -> None: ...

    def load(self, params: Mapping[str, np.ndarray]) -> None:
        """Replace the weights, given by canonical names; whatever is compiled stays compiled."""

    def logits(self) -> np.ndarray:
        """Compute (batch, classes) as in the timed call."""

    def updates(self, rate: float) -> Mapping[str, np.ndarray]:
        """Take one SGD step with this learning rate, put the weights back, and return the change over the rate.

        The names are canonical.
        """

    def kernels(self) -> str | None:
        """Name the kernels of ours that the call runs by, None where there is no choice."""

    def memory(self) -> int | None:
        """Measure the most bytes that a call takes beyond weights and inputs, None where the system cannot tell."""


def make_call(entry: Entry, cell: Cell, seed: int, first: int = 0, draw: str = "usual") -> Call:
    """Make the call of an entry in a cell, on random weights and a batch of `DISTINCT_IMAGES` images.

    The batch begins with the image number `first`; `draw` is one of `STREAM_SCALES`.
    """
    inputs, order = draw_inputs(cell.config, seed, draw), batch_order(cell.batch, first)
    arguments = entry, cell, inputs.params, inputs.images[order], inputs.cotangents[order]
    if entry.contestant.framework == "torch":
        from mixer_equiv.bench.torch_calls import TorchCall

        return TorchCall(*arguments)
    from mixer_equiv.bench.jax_calls import JaxCall

    return JaxCall(*arguments)


def batch_order(batch: int, first: int = 0) -> np.ndarray:
    """Choose the image of each place of a batch: every image once, then any."""
    drawn = np.random.default_rng(batch).integers(DISTINCT_IMAGES, size=batch)
    turns = np.arange(min(batch, DISTINCT_IMAGES))
    drawn[: len(turns)] = turns
    return (drawn + first) % DISTINCT_IMAGES


def draw_inputs(config: MixerConfig, seed: int, draw: str = "usual") -> Inputs:
    """Draw weights, images and cotangents by seed."""
    params, factor = draw_params(config, seed), STREAM_SCALES[draw]
    if factor is not None:
        factor *= max(config.layer_norm_eps, 1e-6) ** 0.5
        ends = [name for name in params if name.startswith("stem/") or "/Dense_1/" in name]
        params |= {name: factor * params[name] for name in ends}
    return Inputs(
        params,
        draw_images(config, seed + 1, count=DISTINCT_IMAGES),
        random_cotangent(config, DISTINCT_IMAGES, seed),
    )
