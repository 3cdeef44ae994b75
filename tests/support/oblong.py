"""The sizes of a small Mixer of oblong images."""

from __future__ import annotations

from mixer_equiv import MixerConfig

CONFIG = MixerConfig(
    num_classes=5,
    num_blocks=1,
    patch_size=(2, 3),
    image_size=(4, 9),
    in_channels=2,
    hidden_dim=7,
    tokens_mlp_dim=4,
    channels_mlp_dim=8,
)
