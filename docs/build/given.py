"""Files that pages of the site are given: small ones in the place of large ones, under their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mixer_equiv import MixerConfig
from mixer_equiv.random_weights import draw_params


def write_published(path: Path) -> None:
    """Write a random Mixer of 12 blocks, narrow and for small images, by the names of the published files."""
    sizes = {"image_size": 64, "hidden_dim": 12, "tokens_mlp_dim": 10, "channels_mlp_dim": 20, "num_classes": 7}
    config = MixerConfig.from_name("B/16", **sizes)
    np.savez(path, **{name: array.astype(np.float32) for name, array in draw_params(config, seed=0).items()})


FILES: dict[str, Callable[[Path], None]] = {"Mixer-B_16.npz": write_published}
