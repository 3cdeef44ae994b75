"""Small checkpoints in any layout, with conventions that no layout has of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv import Checkpoint, MixerConfig
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.io import save
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS, LINEN

# No layout's own conventions, so that they can come from the metadata only.
CONFIG = DEFAULT_CONFIG.replace(activation="quick_gelu", layer_norm_eps=1e-3)
WRITABLE = [name for name, layout in LAYOUTS.items() if not layout.read_only]
JUNK = np.random.default_rng(5).bytes(500)


def in_layout(
    params: Mapping[str, np.ndarray], layout: str = "linen", config: MixerConfig | None = CONFIG, **fields: Any
) -> Checkpoint:
    arrays = relabel(params, LINEN, LAYOUTS[layout], CONFIG)
    return Checkpoint.from_arrays(arrays, layout=layout, config=config, **fields)


def checkpoint(layout: str = "linen", seed: int = 0, config: MixerConfig | None = CONFIG) -> Checkpoint:
    return in_layout(random_params(CONFIG, seed), layout, config)


def files_of(path: Path) -> list[str]:
    """What stands in the folder of a checkpoint that is alone there: itself, and the shards of an index."""
    shards = json.loads(path.read_text())["weight_map"].values() if path.name.endswith(".index.json") else ()
    return sorted({path.name, *shards})


def old_checkpoint(folder: Path, suffix: str) -> Path:
    """What is to be replaced: junk, or in the place of a directory a true checkpoint, as no other may go."""
    path = folder / f"mixer{suffix}"
    if formats.format_by_suffix(path).is_directory:
        save(checkpoint(seed=1), path)
    else:
        path.write_bytes(b"old")
    return path
