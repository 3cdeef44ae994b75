"""The weights and images of a comparison: given ones, or random ones that leave nothing at its initial value."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from einops import rearrange

from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.io import load
from mixer_equiv.config import MixerConfig, size_differences
from mixer_equiv.equivalence.mixer.result import FoundMixer
from mixer_equiv.equivalence.sides.base import MixerSide, NotAMixer, WeightedSide
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.resolve import Side, resolve
from mixer_equiv.equivalence.sides.stored import StoredSide
from mixer_equiv.errors import ConfigError, LayoutError, MixerEquivError
from mixer_equiv.layouts import LINEN, NEUTRAL, Layout
from mixer_equiv.random_weights import draw_params


@dataclasses.dataclass(frozen=True)
class Donor:
    """Weights that both sides take, and the config that they fit."""

    name: str
    config: MixerConfig
    checkpoint: Checkpoint


def give_weights(
    a: MixerSide, b: MixerSide, weights: Literal["given", "random"] | Donor | None, seed: int
) -> tuple[WeightedSide, WeightedSide, str]:
    """Give both sides weights, and tell where these are from: "given", "random" or a checkpoint's name.

    `weights` are "given", "random", or a checkpoint that both take. By default they are given if a side is a
    checkpoint, else random. Raises `MixerEquivError` where there are none to give.
    """
    if weights is None:
        weights = "given" if isinstance(a, StoredSide) or isinstance(b, StoredSide) else "random"
    if weights == "random":
        drawn = Checkpoint(_drawn_for(a, b, seed), LINEN, a.config, None, True, "random weights")
        return WeightedSide(a, drawn), WeightedSide(b, drawn), "random"
    if weights == "given":
        held = [side.own_weights for side in (a, b) if side.own_weights is not None]
        if not held:
            raise MixerEquivError(f"neither {a.name} nor {b.name} has weights; give a checkpoint, or weights='random'")
        own_a, own_b = (side.own_weights or held[0] for side in (a, b))
        return WeightedSide(a, own_a), WeightedSide(b, own_b), "given"
    differences = size_differences(a.config, weights.config)
    if differences:
        raise ConfigError(f"the weights of {weights.name} do not fit {a.name}: {'; '.join(map(str, differences))}")
    return WeightedSide(a, weights.checkpoint), WeightedSide(b, weights.checkpoint), weights.name


def _drawn_for(a: MixerSide, b: MixerSide, seed: int) -> Mapping[str, np.ndarray]:
    """Draw canonical weights that both sides can hold."""
    computing = [side for side in (a, b) if isinstance(side, ForeignSide) and not side.is_named]
    if len(computing) == 2:
        raise MixerEquivError(f"neither {a.name} nor {b.name} has parameters that are official ones; verify each alone")
    if computing:
        return computing[0].drawn()
    params: Mapping[str, np.ndarray] = random_params(a.config, seed)
    for side in (a, b, a):
        params = constrained(params, side.layout, a.config)
    return params


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


def is_said(weights: Any) -> bool:
    """Whether `weights` is None, "given" or "random", and not a checkpoint."""
    return weights is None or (isinstance(weights, str) and weights in ("given", "random"))


def donor_of(weights: Any) -> Donor | None:
    """Read the weights that both sides are to take; return None for a word that says where weights are from.

    None also for arrays in no known layout, which may be by the names of a model that is compared. Raises
    `MixerEquivError` for what holds no weights.
    """
    if is_said(weights):
        return None
    try:
        return _donor(weights, weights)
    except LayoutError:
        return None


def donor_by(weights: Any, sides: Sequence[Side]) -> Donor:
    """Read the weights that both sides are to take, which are by the names of a model in which a layout was found."""
    found = [side.found for side in sides if isinstance(side, ForeignSide) and side.is_named]
    return _donor(checkpoint_of(weights, *found[:1]), weights)


def _donor(source: Any, given: Any) -> Donor:
    """The donor that `source` is, called `given` in the error."""
    side, _ = resolve(source, "reference")
    if isinstance(side, NotAMixer) or side.own_weights is None:
        raise MixerEquivError(f"weights is {given!r}; it must be 'given', 'random' or a checkpoint")
    return Donor(side.name, side.config, side.own_weights)


def checkpoint_of(params: Any, found: FoundMixer | None = None) -> Checkpoint:
    """Read a checkpoint, the path of one, or arrays by name, in the layout that was `found` in a model if any."""
    if found is None or not isinstance(found.layout, Layout):
        return load(params) if isinstance(params, str | os.PathLike) else as_checkpoint(params)
    if isinstance(params, str | os.PathLike):
        return load(params, layout=found.layout, image_size=found.config.image_hw)
    return Checkpoint.from_arrays(params, layout=found.layout, image_size=found.config.image_hw)


def random_params(config: MixerConfig, seed: int) -> dict[str, np.ndarray]:
    """Draw canonical float64 weights, as `draw_params` does."""
    return draw_params(config, seed)


def random_images(config: MixerConfig, seed: int) -> np.ndarray:
    """Draw float64 images (batch, height, width, channels): 8, or 4 for a large model.

    In turns standard normal and Student-t with two degrees of freedom, whose tails reach what code cuts off.
    """
    count = 4 if config.macs > 1e9 else 8
    rng = np.random.default_rng([seed, 1])
    shape = config.image_hw[0], config.image_hw[1], config.in_channels
    kinds = rng.standard_normal, partial(rng.standard_t, 2)
    return np.stack([kinds[i % len(kinds)](size=shape) for i in range(count)])
