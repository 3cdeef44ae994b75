"""Trees of arrays for the tests of file formats, and how they are written and read there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax.training.train_state import TrainState

from mixer_equiv.arrays.interop import flatten, to_numpy
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import format_by_suffix

METADATA = json.dumps({"layout": "linen"})
# A tree of no Mixer, with dotted names beside nested ones, and of every size that has no number to spare.
TREE: dict[str, Any] = {
    "stem": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.full(3, -0.0, np.float32)},
    "blocks.0.norm.weight": np.array([np.nan, -np.inf, 5e-324]),
    "scale": np.array(-0.0, np.float16),
}


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays that stand at `path`, by flat names."""
    return {name: to_numpy(name, leaf) for name, leaf in flatten(formats.read(path).arrays)}


def write(path: Path, arrays: Mapping[str, Any], framework: Any = "flax") -> Path:
    format_by_suffix(path).write(path, dict(flatten(arrays)), METADATA, framework)
    return path


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(tree)}


def train_state(params: Mapping[str, Any]) -> TrainState:
    return TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))


def params(step: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {"stem": {"kernel": rng.normal(size=(3, 5)).astype(np.float32), "bias": rng.normal(size=5)}}
