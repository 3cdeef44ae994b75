"""The official MLP-Mixer in PyTorch: the same mathematics as `mixer_equiv.models.flax`.

Parameter names are the official ones in torch's spelling, and are stable:

    stem.{weight,bias}
    blocks.{i}.layer_norm_0.{weight,bias}
    blocks.{i}.token_mixing.{dense_0,dense_1}.{weight,bias}
    blocks.{i}.layer_norm_1.{weight,bias}
    blocks.{i}.channel_mixing.{dense_0,dense_1}.{weight,bias}
    pre_head_layer_norm.{weight,bias}
    head.{weight,bias}

The three classes are the plain model. Other formulations replace its layers afterwards (`formulations.py`), and an MLP
in inference on a CPU first tries faster kernels (`fast_mlp.py`); neither changes anything here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixer_equiv.config import MixerConfig
from mixer_equiv.formulation import DEFAULT_FORMULATION, Formulation, as_formulation
from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.fast_mlp import infer
from mixer_equiv.models.torch.formulations import apply_formulation
from mixer_equiv.models.torch.initializers import initialize
from mixer_equiv.models.torch.kernel_choice import Kernels
from mixer_equiv.models.torch.packed import PackedMixer
from mixer_equiv.models.torch.protocols import check_images


class MlpBlock(nn.Module):
    """Linear, activation, Linear back to the input's width, over the last axis. `mlp_dim` defaults to `dim`."""

    def __init__(self, dim: int, mlp_dim: int | None = None, activation: str = "gelu_tanh") -> None:
        super().__init__()
        mlp_dim = dim if mlp_dim is None else mlp_dim
        self.dense_0 = nn.Linear(dim, mlp_dim)
        self.dense_1 = nn.Linear(mlp_dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        fast = infer(x, (self.dense_0, self.dense_1), self.activation)  # None wherever the layers are to be called
        return self.dense_1(ACTIVATIONS[self.activation](self.dense_0(x))) if fast is None else fast


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each behind a LayerNorm and inside a residual branch."""

    def __init__(
        self,
        num_tokens: int,
        hidden_dim: int,
        tokens_mlp_dim: int | None = None,
        channels_mlp_dim: int | None = None,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.layer_norm_0 = nn.LayerNorm(hidden_dim, layer_norm_eps)
        self.token_mixing = MlpBlock(num_tokens, tokens_mlp_dim, activation)
        self.layer_norm_1 = nn.LayerNorm(hidden_dim, layer_norm_eps)
        self.channel_mixing = MlpBlock(hidden_dim, channels_mlp_dim, activation)

    def forward(self, x: Tensor, *, taps: bool = False) -> Any:
        """(batch, tokens, hidden) to the same; with `taps`, the pair of streams after each branch."""
        y = self.layer_norm_0(x).transpose(1, 2)
        y = self.token_mixing(y).transpose(1, 2)
        after_tokens = x + y
        y = self.layer_norm_1(after_tokens)
        after_channels = after_tokens + self.channel_mixing(y)
        return (after_tokens, after_channels) if taps else after_channels


class MlpMixer(nn.Module):
    """The whole network (Tolstikhin et al. 2021, figure 1), initialised as the official one.

    Parameters are the same whatever the `formulation`, which says by what operations they are used.
    """

    def __init__(self, config: MixerConfig, formulation: Formulation = DEFAULT_FORMULATION) -> None:
        super().__init__()
        self.config, self.formulation = config, as_formulation(formulation)
        dims = (config.num_tokens, config.hidden_dim, config.tokens_mlp_dim, config.channels_mlp_dim)
        conventions = (config.activation, config.layer_norm_eps)
        self.stem = nn.Conv2d(config.in_channels, config.hidden_dim, config.patch_hw, stride=config.patch_hw)
        self.blocks = nn.ModuleList(MixerBlock(*dims, *conventions) for _ in range(config.num_blocks))
        self.pre_head_layer_norm = nn.LayerNorm(config.hidden_dim, config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.num_classes) if config.num_classes else None
        self.reset_parameters()
        apply_formulation(self, self.formulation)

    def forward(self, images: Tensor, *, taps: bool = False) -> Any:
        """(batch, channels, height, width) to logits (batch, classes), or the dict of taps.

        Raises `ValueError` for images of another size than the config's.
        """
        check_images(images, self.config)
        seen: dict[str, Tensor] = {}

        def tap(name: str, x: Tensor) -> Tensor:
            if taps:  # otherwise nothing is kept, so that activations are freed as the stream goes on
                seen[name] = x
            return x

        x = tap("stem", self.stem(images).flatten(2).transpose(1, 2))
        for i, block in enumerate(self.blocks):
            if taps:
                seen[f"MixerBlock_{i}/token_mixing"], x = block(x, taps=True)
                seen[f"MixerBlock_{i}/channel_mixing"] = x
            else:
                x = block(x)
        x = tap("pre_head_layer_norm", self.pre_head_layer_norm(x))
        x = tap("pooled", x.mean(dim=1))
        if self.head is not None:
            x = tap("logits", self.head(x))
        return seen if taps else x

    def packed(self, kernels: Kernels | None = None) -> PackedMixer:
        """For inference on a CPU, faster: a function of images on packed copies of the weights as they are now.

        `kernels` are "onednn" or "blas", by default what is fast on this processor: see `PackedMixer`, also for errors.
        """
        return PackedMixer(self, kernels)

    def reset_parameters(self) -> None:
        """Draw the official initial weights: lecun-normal kernels, zero biases, and a head of zeros."""
        initialize(self)
