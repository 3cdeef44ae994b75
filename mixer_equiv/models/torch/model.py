"""The official MLP-Mixer in PyTorch: the same mathematics as `mixer_equiv.models.flax`.

Parameter names are the official ones in torch's spelling, and are stable:

    stem.{weight,bias}
    blocks.{i}.layer_norm_0.{weight,bias}
    blocks.{i}.token_mixing.{dense_0,dense_1}.{weight,bias}
    blocks.{i}.layer_norm_1.{weight,bias}
    blocks.{i}.channel_mixing.{dense_0,dense_1}.{weight,bias}
    pre_head_layer_norm.{weight,bias}
    head.{weight,bias}
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.formulation import DEFAULT_FORMULATION, Formulation, as_formulation
from mixer_equiv.models.torch.formulations import CHANNELS, TOKENS, check_images, dense, embed, mlp, norm, stem
from mixer_equiv.models.torch.inference import Mixing
from mixer_equiv.models.torch.packed import PackedMixer
from mixer_equiv.models.torch.processor import Kernels


class MlpBlock(nn.Module):
    """Linear, activation, Linear back to the input's width, over one axis.

    `mlp_dim` defaults to `dim`. `mixing` is the operation that stands for a Linear: the layers are of class
    nn.Linear all the same, and hooks on them run.
    In inference on a CPU it takes the kernels that are fast there (`mixer_equiv.models.torch.inference`).
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        mixing: Mixing = TOKENS["linear"],
    ) -> None:
        super().__init__()
        mlp_dim = dim if mlp_dim is None else mlp_dim
        self.dense_0 = dense(dim, mlp_dim, mixing)
        self.dense_1 = dense(mlp_dim, dim, mixing)
        self.activation = activation
        self.mixing = mixing

    def forward(self, x: Tensor, axis: int = -1) -> Tensor:
        """(..., dim) to (..., dim), or another of the last two axes of three."""
        return mlp(x, axis, (self.dense_0, self.dense_1), self.activation, self.mixing)


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch.

    The stream is (batch, tokens, hidden), or (batch, hidden, tokens) where the `formulation` has it so.
    """

    def __init__(
        self,
        num_tokens: int,
        hidden_dim: int,
        tokens_mlp_dim: int | None = None,
        channels_mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-6,
        formulation: Formulation = DEFAULT_FORMULATION,
    ) -> None:
        super().__init__()
        first = formulation.channels_first
        self.layer_norm_0 = norm(hidden_dim, layer_norm_eps, channels_first=first)
        self.token_mixing = MlpBlock(num_tokens, tokens_mlp_dim, activation, TOKENS[formulation.tokens])
        self.layer_norm_1 = norm(hidden_dim, layer_norm_eps, channels_first=first)
        self.channel_mixing = MlpBlock(hidden_dim, channels_mlp_dim, activation, CHANNELS[formulation.channels])
        self.axes = (-1, -2) if first else (-2, -1)

    def forward(self, x: Tensor, *, taps: bool = False) -> Any:
        """The stream to the same; with `taps`, the pair of streams after each branch."""
        tokens, channels = self.axes
        after_tokens = x + self.token_mixing(self.layer_norm_0(x), tokens)
        after_channels = after_tokens + self.channel_mixing(self.layer_norm_1(after_tokens), channels)
        return (after_tokens, after_channels) if taps else after_channels


class MlpMixer(nn.Module):
    """The whole network (Tolstikhin et al. 2021, figure 1), initialised as the official one.

    Parameters are the same whatever the `formulation`, which says by what operations they are used.
    """

    def __init__(self, config: MixerConfig, formulation: Formulation = DEFAULT_FORMULATION) -> None:
        super().__init__()
        self.config, self.formulation = config, as_formulation(formulation)
        self.stem = stem(config, self.formulation.patch)
        self.blocks = nn.ModuleList(
            MixerBlock(
                config.num_tokens,
                config.hidden_dim,
                config.tokens_mlp_dim,
                config.channels_mlp_dim,
                config.activation,
                config.layer_norm_eps,
                self.formulation,
            )
            for _ in range(config.num_blocks)
        )
        first = self.formulation.channels_first
        self.pre_head_layer_norm = norm(config.hidden_dim, config.layer_norm_eps, channels_first=first)
        self.head: nn.Linear | None = None
        if config.num_classes:
            self.head = nn.Linear(config.hidden_dim, config.num_classes)
        self.reset_parameters()

    def packed(self, kernels: Kernels | None = None) -> PackedMixer:
        """For inference on a CPU, faster: a function of images on packed copies of the weights as they are now.

        `kernels` are "onednn" or "blas", by default what is fast on this processor: see `PackedMixer`, also for errors.
        """
        return PackedMixer(self, kernels)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official initialisers: lecun-normal kernels, zero biases, and a head of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor, *, taps: bool = False) -> Any:
        """(batch, channels, height, width) to logits (batch, classes), or the dict of taps.

        Raises `ValueError` for images of another size than the config's.
        """
        check_images(images, self.config)
        seen: dict[str, Tensor] = {}
        first = self.formulation.channels_first

        def tap(name: str, x: Tensor) -> None:
            if taps:  # else nothing is kept, so that activations are freed as the stream goes on
                seen[name] = x.transpose(1, 2) if first and x.ndim == 3 else x

        x = embed(images, self.stem, channels_first=first)
        tap("stem", x)
        for i, block in enumerate(self.blocks):
            if taps:
                after_tokens, x = block(x, taps=True)
                tap(f"MixerBlock_{i}/token_mixing", after_tokens)
                tap(f"MixerBlock_{i}/channel_mixing", x)
            else:
                x = block(x)
        x = self.pre_head_layer_norm(x)
        tap("pre_head_layer_norm", x)
        x = x.mean(dim=-1 if first else -2)
        tap("pooled", x)
        if self.head is not None:
            x = self.head(x)
            tap("logits", x)
        return seen if taps else x


def _lecun_normal_(weight: Tensor) -> None:
    """Normal of variance 1 / fan_in, cut off at two standard deviations, as jax.nn.initializers does."""
    fan_in = weight[0].numel()
    cut_off_correction = 0.87962566103423978
    std = math.sqrt(1 / fan_in) / cut_off_correction
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
