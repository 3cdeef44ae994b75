"""The MLP-Mixer in NumPy float64: the oracle that shares nothing with the framework models.

Written from the paper (Tolstikhin et al. 2021, section 2) in other expressions than theirs: the
stem is one product over cut-out patches, the variance is taken in two passes, the tanh GELU is
x * sigmoid(2u), and the erf GELU is computed from the standard library's `erfc`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixer_equiv.config import MixerConfig

Array = np.ndarray


class MlpMixer:
    """A function of canonical parameters and images: `MlpMixer(config)(params, images)`."""

    def __init__(self, config: MixerConfig) -> None:
        self.config = config

    def __call__(self, params: Mapping[str, Array], images: Array, *, taps: bool = False) -> Any:
        """Flat canonical `params` and images (batch, height, width, channels) to float64 logits.

        Returns (batch, classes), or with `taps` the dict of stages.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the result
            taps_by_name = self._run({name: np.asarray(value, np.float64) for name, value in params.items()}, images)
        return taps_by_name if taps else list(taps_by_name.values())[-1]

    def _run(self, weights: Mapping[str, Array], images: Array) -> dict[str, Array]:
        eps, activation = self.config.layer_norm_eps, ACTIVATIONS[self.config.activation]
        stream = _embed(np.asarray(images, np.float64), weights["stem/kernel"], weights["stem/bias"])
        seen = {"stem": stream}
        for i in range(self.config.num_blocks):
            block = f"MixerBlock_{i}"
            normed = _layer_norm(stream, weights, f"{block}/LayerNorm_0", eps)
            mixed = _mlp(np.moveaxis(normed, 1, 2), weights, f"{block}/token_mixing", activation)
            stream = seen[f"{block}/token_mixing"] = stream + np.moveaxis(mixed, 2, 1)
            normed = _layer_norm(stream, weights, f"{block}/LayerNorm_1", eps)
            stream = seen[f"{block}/channel_mixing"] = stream + _mlp(
                normed, weights, f"{block}/channel_mixing", activation
            )
        normed = seen["pre_head_layer_norm"] = _layer_norm(stream, weights, "pre_head_layer_norm", eps)
        out = seen["pooled"] = np.einsum("bth->bh", normed) / normed.shape[1]
        if self.config.num_classes:
            seen["logits"] = out @ weights["head/kernel"] + weights["head/bias"]
        return seen


def _embed(images: Array, kernel: Array, bias: Array) -> Array:
    ph, pw, channels, hidden = kernel.shape
    batch, height, width, _ = images.shape
    rows, columns = height // ph, width // pw
    patches = images.reshape(batch, rows, ph, columns, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, rows * columns, -1) @ kernel.reshape(-1, hidden) + bias


def _layer_norm(x: Array, weights: Mapping[str, Array], name: str, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weights[f"{name}/scale"] + weights[f"{name}/bias"]


def _mlp(x: Array, weights: Mapping[str, Array], name: str, activation: Callable[[Array], Array]) -> Array:
    inner = activation(x @ weights[f"{name}/Dense_0/kernel"] + weights[f"{name}/Dense_0/bias"])
    return inner @ weights[f"{name}/Dense_1/kernel"] + weights[f"{name}/Dense_1/bias"]


def _swish(x: Array, slope: float | Array = 1.0) -> Array:
    """x * sigmoid(slope * x), with the limit 0 where exp overflows."""
    return x / (1 + np.exp(-slope * x))


def _gelu_tanh(x: Array) -> Array:
    # (1 + tanh(u)) / 2 is sigmoid(2u), with u = sqrt(2 / pi) * (x + 0.044715 x^3).
    return _swish(x, math.sqrt(8 / math.pi) * (1 + 0.044715 * x * x))


def _gelu(x: Array) -> Array:
    # The normal distribution function by erfc keeps its relative precision for negative x.
    erfc = np.asarray(np.frompyfunc(math.erfc, 1, 1)(-x / math.sqrt(2)), np.float64)
    return x / 2 * erfc


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "silu": _swish,
    "quick_gelu": lambda x: _swish(x, 1.702),
}
