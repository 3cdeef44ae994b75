"""Scenic's Mixer in Flax, how it and the official one are run, and checkpoints from before linen."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import flax.linen as linen
import jax
import numpy as np

from benchmarks.xla_options import cheap_jit
from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.bench.peers_flax import MixerBlock, official_mixer
from mixer_equiv.config import MixerConfig


class ScenicMixer(linen.Module):
    """The names of google-research/scenic around the same blocks; its stem pads nothing."""

    config: MixerConfig

    @linen.compact
    def __call__(self, images: Any) -> Any:
        config = self.config
        embedding = linen.Conv(config.hidden_dim, config.patch_hw, config.patch_hw, padding="VALID", name="embedding")
        x = embedding(images).reshape(len(images), -1, config.hidden_dim)
        for i in range(config.num_blocks):
            x = MixerBlock(config.tokens_mlp_dim, config.channels_mlp_dim, name=f"mixerblock_{i}")(x)
        x = linen.LayerNorm(name="pre_logits_norm")(x).mean(axis=1)
        if not config.num_classes:
            return x
        return linen.Dense(config.num_classes, kernel_init=linen.initializers.zeros, name="output_projection")(x)


def run_official(config: MixerConfig, params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Float64 logits of the official model, from flat canonical weights."""
    return _run(official_mixer(config), params, images)


def run_scenic(config: MixerConfig, params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Float64 logits of Scenic's model, from flat weights under its own names."""
    return _run(ScenicMixer(config), params, images)


def _run(model: linen.Module, params: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_jitted(model)(unflatten({name: a.astype(np.float64) for name, a in params.items()}), images))


@lru_cache(maxsize=64)
def _jitted(model: linen.Module) -> Any:
    """The model compiled, and kept for other weights and images."""
    return cheap_jit(lambda params, images: model.apply({"params": params}, images))


# How a block's two LayerNorms may be numbered, where string order and numeric order may differ.
_NORM_NUMBERS = ((2, 10), (1, 3), (0, 1), (9, 11), (99, 100))


def pre_linen_arrays(
    params: dict[str, np.ndarray], config: MixerConfig, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Flat canonical weights as a checkpoint from before linen holds them, in no order.

    The mixing layers' arrays get singleton axes anywhere, and the two LayerNorms of a block any
    numbers, of which the first is the smaller.
    """
    arrays = {f"embedding/{leaf}": params[f"stem/{leaf}"] for leaf in ("kernel", "bias")}
    for i in range(config.num_blocks):
        arrays |= _pre_linen_block(params, i, rng)
    arrays |= {f"Mixer/encoder_norm/{leaf}": params[f"pre_head_layer_norm/{leaf}"] for leaf in ("scale", "bias")}
    arrays |= {name: array for name, array in params.items() if name.startswith("head/")}
    names = list(arrays)
    return {names[i]: arrays[names[i]] for i in rng.permutation(len(names))}


def _pre_linen_block(params: dict[str, np.ndarray], i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    ours, theirs = f"MixerBlock_{i}", f"Mixer/encoderblock_{i}"
    block = {
        f"{theirs}/LayerNorm_{number}/{leaf}": params[f"{ours}/LayerNorm_{n}/{leaf}"]
        for n, number in enumerate(_NORM_NUMBERS[i % len(_NORM_NUMBERS)])
        for leaf in ("scale", "bias")
    }
    for mixing in ("token_mixing", "channel_mixing"):
        for n in (0, 1):
            for leaf in ("kernel", "bias"):
                array = params[f"{ours}/{mixing}/Dense_{n}/{leaf}"]
                block[f"{theirs}/{mixing}_phase_0/{leaf}{n + 1}"] = _with_singleton_axes(array, rng)
    return block


def _with_singleton_axes(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same numbers with one or two axes of size 1 put in, or for a bias none."""
    for _ in range(rng.integers(array.ndim > 1, 3)):
        array = np.expand_dims(array, int(rng.integers(array.ndim + 1)))
    return array
