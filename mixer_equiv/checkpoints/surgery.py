"""Change weights for another use: another head, none, or images of another size.

All changes are made to canonical weights and brought back to the checkpoint's layout.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from einops import rearrange, repeat

from mixer_equiv.arrays.lazy import Deferred, LazyArrays, as_lazy, materialize
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.conversion import relabel_lazily
from mixer_equiv.config import MixerConfig, Size, as_pair, fitting_image_sizes
from mixer_equiv.errors import ConfigError
from mixer_equiv.layouts import LINEN


def drop_head(checkpoint: Mapping[str, Any]) -> Checkpoint:
    """Leave `head/kernel` and `head/bias` out, so that the model gives the pooled features.

    `checkpoint` is a `Checkpoint` or arrays by name.
    """
    checkpoint = as_checkpoint(checkpoint)
    weights = {name: array for name, array in _canonical(checkpoint).items() if not name.startswith("head/")}
    return _with(checkpoint, weights, checkpoint.config.replace(num_classes=0), "the head was dropped")


def new_head(checkpoint: Mapping[str, Any], num_classes: int) -> Checkpoint:
    """Put the head of a new official model on: zeros, of shapes (hidden, classes) and (classes).

    `checkpoint` is a `Checkpoint` or arrays by name. The head's dtype is that of the LayerNorm before it.
    Raises `ConfigError` for less than one class.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; a head has at least 1 (drop_head, --drop-head, takes it off)")
    checkpoint = as_checkpoint(checkpoint)
    config = checkpoint.config.replace(num_classes=num_classes)
    _check_memory(config)
    weights = _canonical(checkpoint)
    dtype = weights["pre_head_layer_norm/scale"].dtype
    for name, axes in (("head/kernel", ("hidden", "classes")), ("head/bias", ("classes",))):
        weights[name] = np.zeros([config.axis_sizes[axis] for axis in axes], dtype)
    return _with(checkpoint, weights, config, f"the head is a new one of zeros, for {num_classes} classes")


def enlarge(checkpoint: Mapping[str, Any], image_size: Size) -> Checkpoint:
    """Widen weights for images K times as high and wide, by the rule of Tolstikhin et al. 2021, appendix C.

    The image is seen as K by K sub-images of the size so far. There are K^2 times as many tokens,
    and the token-mixing MLP is K^2 times as wide and block-diagonal: each sub-image is mixed by
    itself, until training connects them. Until then the logits for an image are the mean of
    the logits that the weights gave for its sub-images. Tokens stay in row-major order over the
    whole image.

    `checkpoint` is a `Checkpoint` or arrays by name, `image_size` is in pixels. Raises `ConfigError` unless
    that is an integer K times the size that the weights have, with the same K both ways.
    """
    checkpoint = as_checkpoint(checkpoint)
    factor = enlargement_factor(checkpoint, image_size)
    height, width = as_pair("image_size", image_size)
    small = checkpoint.config.resized((height // factor, width // factor))
    large = small.replace(image_size=image_size, tokens_mlp_dim=small.tokens_mlp_dim * factor**2)
    _check_memory(large)
    weights = _canonical(checkpoint)
    for name, binding in LINEN.bindings(large.num_blocks).items():
        _, _, parameter = name.partition("/token_mixing/")
        if parameter:
            make = partial(_widen, weights[name], parameter, small.grid_hw, factor)
            weights[name] = Deferred(binding.shape(large.axis_sizes), weights[name].dtype, make)
    sizes = ["x".join(map(str, config.image_hw)) for config in (small, large)]
    note = f"widened from images of {sizes[0]} to {sizes[1]}, seen as {factor}x{factor} sub-images"
    return dataclasses.replace(_with(checkpoint, weights, large, note), image_size_is_assumed=False)


def _check_memory(config: MixerConfig) -> None:
    """Refuse weights that this machine cannot hold, before the attempt brings it down."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    needed = 2 * config.num_parameters  # in the smallest dtype of a parameter
    if needed > memory:
        raise ConfigError(
            f"the result would have {config.num_parameters:,} parameters, of {needed / 1e9:,.0f} GB at least; "
            f"this machine has {memory / 1e9:,.0f} GB of memory"
        )


def enlargement_factor(checkpoint: Checkpoint, image_size: Size) -> int:
    """The integer K by which images of `image_size` are higher and wider. Raises `ConfigError` if there is none."""
    config = checkpoint.config
    height, width = as_pair("image_size", image_size)
    tokens = (height // config.patch_hw[0]) * (width // config.patch_hw[1])
    factor = math.isqrt(tokens // config.num_tokens)
    now = [config.image_hw]
    if checkpoint.image_size_is_assumed:
        now = fitting_image_sizes(config.num_tokens, config.patch_hw)
    if factor and (height, width) in {(h * factor, w * factor) for h, w in now}:
        return factor
    sizes = " or ".join(f"{h}x{w}" for h, w in now)
    raise ConfigError(f"weights are widened to a whole number of times {sizes}, and {height}x{width} is not")


# Axes of the large image's tokens, in row-major order: rows of sub-images (a), rows of tokens in a sub-image (h),
# columns of sub-images (b), columns of tokens in a sub-image (w). Hidden units: m for each sub-image (a b).


def _widen_in(kernel: np.ndarray, grid: tuple[int, int], factor: int) -> np.ndarray:
    """Widen (tokens, tokens_mlp) block-diagonally to (K^2 tokens, K^2 tokens_mlp)."""
    h, w = grid
    blocks = rearrange(kernel, "(h w) m -> h w m", h=h, w=w)
    large = np.zeros((factor, h, factor, w, factor, factor, kernel.shape[1]), kernel.dtype)
    for a in range(factor):
        for b in range(factor):
            large[a, :, b, :, a, b, :] = blocks
    return rearrange(large, "a h b w c d m -> (a h b w) (c d m)")


def _widen_out(kernel: np.ndarray, grid: tuple[int, int], factor: int) -> np.ndarray:
    """Widen (tokens_mlp, tokens) block-diagonally to (K^2 tokens_mlp, K^2 tokens)."""
    return np.ascontiguousarray(_widen_in(kernel.T, grid, factor).T)


def _widen_hidden_bias(bias: np.ndarray, grid: tuple[int, int], factor: int) -> np.ndarray:
    return repeat(bias, "m -> (c d m)", c=factor, d=factor)


def _widen_token_bias(bias: np.ndarray, grid: tuple[int, int], factor: int) -> np.ndarray:
    return repeat(bias, "(h w) -> (a h b w)", h=grid[0], w=grid[1], a=factor, b=factor)


_WIDEN = {
    "Dense_0/kernel": _widen_in,
    "Dense_0/bias": _widen_hidden_bias,
    "Dense_1/kernel": _widen_out,
    "Dense_1/bias": _widen_token_bias,
}


def _widen(array: Any, parameter: str, grid: tuple[int, int], factor: int) -> np.ndarray:
    return _WIDEN[parameter](np.asarray(array), grid, factor)


def _canonical(checkpoint: Checkpoint) -> dict[str, Any]:
    """The weights by canonical names, computed when they are used."""
    present, _ = checkpoint.check(allow_missing=_HEAD)
    lazy = as_lazy(checkpoint.arrays)
    return relabel_lazily(lazy, checkpoint.layout, LINEN, checkpoint.config, only=present).leaves


_HEAD = ("head/*",)


def _with(checkpoint: Checkpoint, weights: Mapping[str, Any], config: MixerConfig, note: str) -> Checkpoint:
    lazy = relabel_lazily(LazyArrays(weights), LINEN, checkpoint.layout, config)
    arrays = materialize(lazy, checkpoint.arrays, copy=True)
    notes = (*checkpoint.notes, note)
    return dataclasses.replace(checkpoint, arrays=arrays, config=config, config_is_stated=True, notes=notes)
