"""Other people's Mixers, for the tests: the official Flax one, the tutorial's, and real timm.

The first two are rebuilt here from the published parameter trees and the paper, and share no code
with `mixer_equiv.models`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as linen
import jax
import numpy as np
import torch
from torch import nn

from mixer_equiv.arrays import unflatten
from mixer_equiv.config import MixerConfig


class OfficialMlp(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.gelu(linen.Dense(features=self.width)(x))
        return linen.Dense(features=x.shape[-1])(hidden)


class MixerBlock(linen.Module):
    tokens_width: int
    channels_width: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        normed = linen.LayerNorm()(x).transpose(0, 2, 1)
        x += OfficialMlp(self.tokens_width, name="token_mixing")(normed).transpose(0, 2, 1)
        normed = linen.LayerNorm()(x)
        return x + OfficialMlp(self.channels_width, name="channel_mixing")(normed)


class OfficialMixer(linen.Module):
    """flax.linen with all its defaults, as google-research/vision_transformer calls it."""

    patch: tuple[int, int]
    classes: int
    depth: int
    width: int
    tokens_width: int
    channels_width: int

    @linen.compact
    def __call__(self, images: Any) -> Any:
        x = linen.Conv(self.width, self.patch, self.patch, name="stem")(images)
        x = x.reshape(len(x), -1, self.width)
        for _ in range(self.depth):
            x = MixerBlock(self.tokens_width, self.channels_width)(x)
        x = linen.LayerNorm(name="pre_head_layer_norm")(x).mean(axis=1)
        if not self.classes:
            return x
        return linen.Dense(self.classes, kernel_init=linen.initializers.zeros, name="head")(x)


def official(config: MixerConfig) -> OfficialMixer:
    return OfficialMixer(
        config.patch_hw,
        config.num_classes,
        config.num_blocks,
        config.hidden_dim,
        config.tokens_mlp_dim,
        config.channels_mlp_dim,
    )


def run_official(config: MixerConfig, params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Float64 logits of the official model, from flat canonical weights."""
    with jax.enable_x64(True):
        apply = cheap_jit(lambda params, images: official(config).apply({"params": params}, images))
        return np.asarray(apply(unflatten({name: a.astype(np.float64) for name, a in params.items()}), images))


def cheap_jit(function: Any) -> Any:
    """jax.jit with little optimisation: a test's model is compiled once and run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


class TutorialMlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, mlp_dim)
        self.activation = nn.GELU()
        self.linear_2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class TutorialBlock(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.hidden_dim), nn.LayerNorm(config.hidden_dim)
        self.token_mlp_block = TutorialMlp(config.num_tokens, config.tokens_mlp_dim)
        self.channel_mlp_block = TutorialMlp(config.hidden_dim, config.channels_mlp_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mlp_block(self.norm_1(x).mT).mT
        return x + self.channel_mlp_block(self.norm_2(x))


class TutorialMixer(nn.Module):
    """The structure of jankrepl/mildlyoverfitted: torch's defaults, so erf GELU and eps 1e-5."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.patch_embedder = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw)
        self.blocks = nn.Sequential(*(TutorialBlock(config) for _ in range(config.num_blocks)))
        self.pre_head_norm = nn.LayerNorm(config.hidden_dim)
        self.head_classifier = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embedder(images).flatten(start_dim=2).mT
        return self.head_classifier(self.pre_head_norm(self.blocks(tokens)).mean(dim=1))

    def follow_official_conventions(self) -> None:
        """What the conversion's warnings tell the user to do."""
        for module in self.modules():
            if isinstance(module, TutorialMlp):
                module.activation = nn.GELU(approximate="tanh")
            elif isinstance(module, nn.LayerNorm):
                module.eps = 1e-6


@functools.cache
def real_timm() -> Any:
    """timm, with the torchvision operators declared that its CPU wheel expects CUDA libraries for."""
    for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", "qnms(Tensor d) -> Tensor"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        if not hasattr(torch.ops.torchvision, operator.partition("(")[0]):
            library.define(operator)
            _LIBRARIES.append(library)
    import timm

    return timm


_LIBRARIES: list[torch.library.Library] = []  # an operator is undefined again when its library is collected


def timm_mixer(config: MixerConfig, **kwargs: Any) -> nn.Module:
    """timm's MlpMixer of these sizes; its hidden widths are given as ratios of the embedding."""
    from_ratio = tuple((dim + 0.5) / config.hidden_dim for dim in (config.tokens_mlp_dim, config.channels_mlp_dim))
    return real_timm().models.mlp_mixer.MlpMixer(
        num_classes=config.num_classes,
        img_size=config.image_hw,
        in_chans=config.in_channels,
        patch_size=config.patch_hw,
        num_blocks=config.num_blocks,
        embed_dim=config.hidden_dim,
        mlp_ratio=from_ratio,
        **kwargs,
    )


def run_torch(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Float64 logits of a torch model for images (batch, height, width, channels)."""
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
