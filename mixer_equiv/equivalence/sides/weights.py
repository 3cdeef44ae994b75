"""Weights and images to compare with: random ones that leave nothing at its initial value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from einops import rearrange

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.config import MixerConfig, size_differences
from mixer_equiv.equivalence.sides.candidate import checkpoint_of
from mixer_equiv.equivalence.sides.side import Subject, subjects
from mixer_equiv.errors import ConfigError, LayoutError, MixerEquivError
from mixer_equiv.layouts import LINEN, NEUTRAL, Layout
from mixer_equiv.random_weights import draw_params


def give_weights(a: Subject, b: Subject, weights: Subject | str | None, seed: int) -> tuple[Subject, Subject, str]:
    """Both subjects with weights, and where these are from: "given", "random" or a checkpoint's name.

    `weights` are "given", "random", or the `weights_holder` that both take.
    """
    if weights is None:
        weights = "given" if a.from_weights or b.from_weights else "random"
    if weights == "random":
        own = [side for side in (a, b) if side.found is not None and side.found.layout is None]
        if len(own) == 2:
            raise MixerEquivError(
                f"neither {a.name} nor {b.name} has parameters that are official ones; verify each alone"
            )
        params = random_params(a.config, seed)
        if own and own[0].candidate is not None and own[0].found is not None:
            params = own[0].candidate.drawn(own[0].found)
        for side in (a, b, a):
            params = params if own else constrained(params, side.layout, a.config)
        donor = Checkpoint(params, LINEN, a.config, None, True, "random weights")
        return a.replace(checkpoint=donor), b.replace(checkpoint=donor), "random"
    if not isinstance(weights, Subject):
        donors = [side.checkpoint for side in (a, b) if side.checkpoint]
        if not donors:
            raise MixerEquivError(f"neither {a.name} nor {b.name} has weights; give a checkpoint, or weights='random'")
        return a.replace(checkpoint=a.checkpoint or donors[0]), b.replace(checkpoint=b.checkpoint or donors[0]), "given"
    differences = size_differences(a.config, weights.config)
    if differences:
        raise ConfigError(f"the weights of {weights.name} do not fit {a.name}: {'; '.join(map(str, differences))}")
    return a.replace(checkpoint=weights.checkpoint), b.replace(checkpoint=weights.checkpoint), weights.name


def constrained(params: Mapping[str, np.ndarray], layout: Layout, config: MixerConfig) -> dict[str, np.ndarray]:
    """Canonical weights that the layout can hold: what is one array there is the same, what it lacks is neutral."""
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
    """Whether it is a word that says what weights to take, or none, and no checkpoint."""
    return weights is None or (isinstance(weights, str) and weights in ("given", "random"))


def weights_holder(weights: Any) -> Subject | None:
    """The checkpoint that both sides are to take; None if it is in no known layout, or as said.

    Raises `MixerEquivError` for what holds no weights.
    """
    if is_said(weights):
        return None
    try:
        holder, _ = subjects(weights, "reference")
    except LayoutError:
        return None
    if holder.checkpoint is None:
        raise MixerEquivError(f"weights is {weights!r}; it must be 'given', 'random' or a checkpoint")
    return holder


def weights_by(weights: Any, sides: Sequence[Subject]) -> Subject:
    """The same of weights by the names of one of the sides, a model in which a layout was found."""
    named = next((side.found for side in sides if side.found is not None and side.found.layout is not None), None)
    holder, _ = subjects(checkpoint_of(weights, named), "reference")
    return holder


def random_params(config: MixerConfig, seed: int) -> dict[str, np.ndarray]:
    """Canonical float64 weights, every one random, as `draw_params` makes them."""
    return draw_params(config, seed)


def random_images(config: MixerConfig, seed: int) -> np.ndarray:
    """Float64 images (batch, height, width, channels), 8, or 4 for a large model.

    In turns standard normal and Student-t with two degrees of freedom, whose tails reach what code cuts off.
    """
    count = 4 if config.macs > 1e9 else 8
    rng = np.random.default_rng([seed, 1])
    shape = config.image_hw[0], config.image_hw[1], config.in_channels
    kinds = rng.standard_normal, partial(rng.standard_t, 2)
    return np.stack([kinds[i % len(kinds)](size=shape) for i in range(count)])
