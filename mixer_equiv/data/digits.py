"""A Mixer trained on real handwritten digits, and the digits that were held out from its training.

Source of the images: scikit-learn's `load_digits`, the test part of the UCI "Optical Recognition
of Handwritten Digits" set (E. Alpaydin, C. Kaynak; CC BY 4.0). `examples/train_digits.py` made
both files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixer_equiv.config import MixerConfig

_DATA = Path(__file__).parent

CHECKPOINT = _DATA / "digits_mixer.npz"
HELD_OUT = _DATA / "digits_held_out.npz"

CONFIG = MixerConfig(
    num_classes=10,
    num_blocks=12,
    patch_size=2,
    image_size=8,
    in_channels=1,
    hidden_dim=32,
    tokens_mlp_dim=24,
    channels_mlp_dim=64,
)


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Load images (batch, 8, 8, 1), float32 in [-1, 1], and labels (batch,), that training never saw."""
    with np.load(HELD_OUT, allow_pickle=False) as data:
        return preprocess(data["images"]), data["labels"].astype(np.int64)


def preprocess(images: np.ndarray) -> np.ndarray:
    """Bring grey levels 0 to 16, (batch, 8, 8), to the model's inputs, (batch, 8, 8, 1) in [-1, 1]."""
    return (images.astype(np.float32) / 8 - 1)[..., np.newaxis]
