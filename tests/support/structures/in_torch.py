"""More Mixers in torch, rebuilt; those that are timed too are in `mixer_equiv.bench.peers_torch`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mixer_equiv.config import MixerConfig


class JeonsworldMlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)
        self.act_fn = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(self.act_fn(self.fc0(x)))


class JeonsworldBlock(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.channel_mlp_block = JeonsworldMlp(config.hidden_dim, config.channels_mlp_dim)
        self.token_mlp_block = JeonsworldMlp(config.num_tokens, config.tokens_mlp_dim)
        self.post_norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.pre_norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mlp_block(self.pre_norm(x).mT).mT
        return x + self.channel_mlp_block(self.post_norm(x))


class JeonsworldMixer(nn.Module):
    """The structure of jeonsworld/MLP-Mixer-Pytorch: registered in another order than it runs, erf GELU, eps 1e-6."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.hidden_dim, config.num_classes)
        self.pre_head_ln = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.layer = nn.ModuleList(JeonsworldBlock(config) for _ in range(config.num_blocks))
        self.stem = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2).mT
        for block in self.layer:
            x = block(x)
        return self.head(self.pre_head_ln(x).mean(dim=1))


class MmpretrainMlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout())
        self.layers = nn.Sequential(first, nn.Linear(mlp_dim, dim), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class MmpretrainBlock(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim)
        self.token_mix = MmpretrainMlp(config.num_tokens, config.tokens_mlp_dim)
        self.ln2 = nn.LayerNorm(config.hidden_dim)
        self.channel_mix = MmpretrainMlp(config.hidden_dim, config.channels_mlp_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.token_mix(self.ln1(x).mT).mT
        return x + self.channel_mix(self.ln2(x))


class MmpretrainPatches(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.projection = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(images).flatten(2).mT


class MmpretrainBackbone(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.patch_embed = MmpretrainPatches(config)
        self.layers = nn.ModuleList(MmpretrainBlock(config) for _ in range(config.num_blocks))
        self.ln1 = nn.LayerNorm(config.hidden_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.ln1(x)


class MmpretrainHead(nn.Module):
    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc(pooled)


class MmpretrainMixer(nn.Module):
    """The structure of open-mmlab/mmpretrain: a backbone and a head, erf GELU, eps 1e-5."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.backbone = MmpretrainBackbone(config)
        self.head = MmpretrainHead(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images).mean(dim=1))


def run_torch(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Float64 logits of a torch model for images (batch, height, width, channels)."""
    with torch.no_grad():
        return model.double().eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
