"""A small torch Mixer with random weights, and images for it, for tests of its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixer_equiv import Formulation, MixerConfig
from mixer_equiv.models.torch import MlpMixer

CONFIG = MixerConfig(
    num_classes=5,
    num_blocks=11,
    patch_size=(2, 3),
    image_size=(6, 9),
    hidden_dim=13,
    tokens_mlp_dim=7,
    channels_mlp_dim=20,
    in_channels=4,
)
SHALLOW = CONFIG.replace(num_blocks=2)
LARGE = CONFIG.replace(num_blocks=2, hidden_dim=96, tokens_mlp_dim=64, channels_mlp_dim=256)
EPSILON = {torch.float32: 1e-6, torch.bfloat16: 3e-2}


def mixer(config: MixerConfig = CONFIG, dtype: torch.dtype = torch.float32, **kwargs: Any) -> MlpMixer:
    torch.manual_seed(7)
    made = MlpMixer(config, **kwargs)
    for value in made.parameters():
        nn.init.normal_(value, std=0.4)
    return made.to(dtype).eval()


def images(config: MixerConfig = CONFIG, dtype: torch.dtype = torch.float32, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.randn(batch, config.in_channels, *config.image_hw, generator=generator).to(dtype)


def shallow_mixer(dtype: torch.dtype, formulation: Formulation | None = None) -> MlpMixer:
    return mixer(SHALLOW, dtype, formulation=formulation or Formulation()).requires_grad_(False)


def shallow_images(dtype: torch.dtype) -> torch.Tensor:
    return images(SHALLOW, dtype)


def error(found: torch.Tensor, model: MlpMixer, x: torch.Tensor) -> float:
    """The error of `found` relative to float64."""
    assert found.dtype == x.dtype
    truth = shallow_mixer(torch.float64)
    truth.load_state_dict(model.state_dict())
    expected = truth(x.double())
    return float((found.double() - expected).norm() / expected.norm())
