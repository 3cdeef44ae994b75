"""The Mixers of others in torch: a tutorial's and lucidrains', rebuilt from names, shapes and paper; timm's own.

They have their own conventions; `with_conventions` gives them others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from einops.layers.torch import Rearrange, Reduce
from torch import nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.locate import import_timm

Module = TypeVar("Module", bound=nn.Module)


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
        """Do what the warnings of a conversion advise."""
        as_official(self)


class PreNormResidual(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fn(self.norm(x))


class LucidrainsMixer(nn.Sequential):
    """The structure of lucidrains/mlp-mixer-pytorch: flat, token mixing by convolution, erf GELU, eps 1e-5."""

    def __init__(self, config: MixerConfig, dropout: float = 0.0) -> None:
        (ph, pw), dim = config.patch_hw, config.hidden_dim
        super().__init__(
            Rearrange("b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=ph, pw=pw),
            nn.Linear(ph * pw * config.in_channels, dim),
            *(self.block(config, dropout) for _ in range(config.num_blocks)),
            nn.LayerNorm(dim),
            Reduce("b n d -> b d", "mean"),
            nn.Linear(dim, config.num_classes),
        )

    @classmethod
    def block(cls, config: MixerConfig, dropout: float) -> nn.Module:
        # The tokens are the convolution's channels.
        pointwise = functools.partial(nn.Conv1d, kernel_size=1)
        tokens = cls.mlp(config.num_tokens, config.tokens_mlp_dim, pointwise, dropout)
        channels = cls.mlp(config.hidden_dim, config.channels_mlp_dim, nn.Linear, dropout)
        return nn.Sequential(PreNormResidual(config.hidden_dim, tokens), PreNormResidual(config.hidden_dim, channels))

    @staticmethod
    def mlp(dim: int, mlp_dim: int, dense: Any, dropout: float) -> nn.Module:
        dropped = functools.partial(nn.Dropout, dropout)
        return nn.Sequential(dense(dim, mlp_dim), nn.GELU(), dropped(), dense(mlp_dim, dim), dropped())


def timm_mixer(config: MixerConfig, **kwargs: Any) -> nn.Module:
    """Make timm's MlpMixer of these sizes; it takes the hidden widths as ratios of the embedding."""
    from_ratio = tuple((dim + 0.5) / config.hidden_dim for dim in (config.tokens_mlp_dim, config.channels_mlp_dim))
    model: nn.Module = import_timm().models.mlp_mixer.MlpMixer(
        num_classes=config.num_classes,
        img_size=config.image_hw,
        in_chans=config.in_channels,
        patch_size=config.patch_hw,
        num_blocks=config.num_blocks,
        embed_dim=config.hidden_dim,
        mlp_ratio=from_ratio,
        **kwargs,
    )
    return model


class QuickGelu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu_tanh": functools.partial(nn.GELU, "tanh"),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "quick_gelu": QuickGelu,
}


def with_conventions(model: Module, activation: str, layer_norm_eps: float) -> Module:
    """Change the GELUs of `model` and the eps of its LayerNorms, and return the model."""
    for module in list(model.modules()):
        if isinstance(module, nn.LayerNorm):
            module.eps = layer_norm_eps
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, ACTIVATIONS[activation]())
    return model


def as_official(model: Module) -> Module:
    """Change `model` to tanh GELU and LayerNorm with eps 1e-6, and return it."""
    return with_conventions(model, "gelu_tanh", 1e-6)
