"""The weights of a comparison: given ones, or random ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.io import load
from mixer_equiv.config import MixerConfig, size_differences
from mixer_equiv.equivalence.mixer.result import FoundMixer
from mixer_equiv.equivalence.sides.base import MixerSide, NotAMixer, WeightedSide
from mixer_equiv.equivalence.sides.drawn_weights import constrained, random_params
from mixer_equiv.equivalence.sides.foreign import EXTRA_SEED, ForeignSide
from mixer_equiv.equivalence.sides.resolve import Side, resolve
from mixer_equiv.equivalence.sides.stored import StoredSide
from mixer_equiv.errors import ConfigError, LayoutError, MixerEquivError
from mixer_equiv.layouts import LINEN, Layout


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
        return computing[0].draw(EXTRA_SEED).canonical
    params: Mapping[str, np.ndarray] = random_params(a.config, seed)
    for side in (a, b, a):
        params = constrained(params, side.layout, a.config)
    return params


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
