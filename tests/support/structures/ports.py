"""A port of the official model whose structure departs from it as others' do, one flag for each departure."""

from __future__ import annotations

from typing import Any

import torch
from einops.layers.torch import Rearrange
from torch import nn

from mixer_equiv.config import MixerConfig


class PortMlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, mlp_dim)
        self.act = nn.GELU(approximate="tanh")
        self.down = nn.Linear(mlp_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


class PortBlock(nn.Module):
    """Norms `norm_tokens` and `norm_channels`, or one `norm` for both; `norm` in the call replaces them."""

    def __init__(self, config: MixerConfig, norms: tuple[str, ...]) -> None:
        super().__init__()
        self.norms = norms
        for name in norms:
            self.add_module(name, nn.LayerNorm(config.hidden_dim, eps=1e-6))
        self.mix_tokens = PortMlp(config.num_tokens, config.tokens_mlp_dim)
        self.mix_channels = PortMlp(config.hidden_dim, config.channels_mlp_dim)

    def forward(self, x: torch.Tensor, norm: nn.Module | None = None) -> torch.Tensor:
        first, second = (norm or self.get_submodule(self.norms[n]) for n in (0, -1))
        x = x + self.mix_tokens(first(x).mT).mT
        return x + self.mix_channels(second(x))


class PortMixer(nn.Module):
    """An MLP-Mixer with the official conventions and names of its own.

    `shared_norm`: one LayerNorm for both branches of a block, `blocks.{i}.norm`.
    `norm_all`: one LayerNorm, `norm_all`, for both branches of all blocks; the final one is its own.
    `tied_blocks`: one block, `block`, applied `config.num_blocks` times.
    `stem_bias`: whether the stem has a bias.
    `linear_stem`: the stem is a Linear whose columns are in this order, such as "ph pw channels".
    """

    def __init__(
        self,
        config: MixerConfig,
        *,
        shared_norm: bool = False,
        norm_all: bool = False,
        tied_blocks: bool = False,
        stem_bias: bool = True,
        linear_stem: str | None = None,
    ) -> None:
        super().__init__()
        self.num_blocks = config.num_blocks
        self.embed = linear_patches(config, linear_stem, stem_bias) if linear_stem else conv_patches(config, stem_bias)
        norms = () if norm_all else ("norm",) if shared_norm else ("norm_tokens", "norm_channels")
        self.norm_all = nn.LayerNorm(config.hidden_dim, eps=1e-6) if norm_all else None
        if tied_blocks:
            self.block = PortBlock(config, norms)
        else:
            self.blocks = nn.ModuleList(PortBlock(config, norms) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.hidden_dim, eps=1e-6)
        self.classifier = nn.Linear(config.hidden_dim, config.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images)
        for i in range(self.num_blocks):
            block = self.blocks[i] if hasattr(self, "blocks") else self.block
            x = block(x, self.norm_all)
        return self.classifier(self.final_norm(x).mean(dim=1))


def conv_patches(config: MixerConfig, bias: bool) -> nn.Module:
    """Parameters `0.{weight,bias}`; (batch, channels, height, width) to (batch, tokens, hidden)."""
    conv = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, config.patch_hw, bias=bias)
    return nn.Sequential(conv, Rearrange("b d h w -> b (h w) d"))


def linear_patches(config: MixerConfig, order: str, bias: bool) -> nn.Module:
    """Parameters `1.{weight,bias}`; weight (hidden, the patch's axes in `order`)."""
    ph, pw = config.patch_hw
    cut = Rearrange(f"b channels (h ph) (w pw) -> b (h w) ({order})", ph=ph, pw=pw)
    return nn.Sequential(cut, nn.Linear(ph * pw * config.in_channels, config.hidden_dim, bias=bias))


# Each departure alone, and some of them together, as arguments of `PortMixer`.
PORTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared norm": {"shared_norm": True},
    "norm all": {"norm_all": True},
    "tied blocks": {"tied_blocks": True},
    "no stem bias": {"stem_bias": False},
    "linear stem, channels last": {"linear_stem": "ph pw channels"},
    "linear stem, channels first": {"linear_stem": "channels ph pw"},
    "tied blocks, shared norm": {"tied_blocks": True, "shared_norm": True},
    "linear stem without bias": {"linear_stem": "ph pw channels", "stem_bias": False},
}
