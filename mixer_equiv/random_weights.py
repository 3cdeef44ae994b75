"""Random weights and images, reproducible by seed, in styles that each put a comparison to another test."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConfigError
from mixer_equiv.layouts import LINEN

# Distributions of random weights and images, which `draw_params` describes.
STYLES = ("normal", "heavy_tailed", "sparse", "large_mean", "special")

Rng = np.random.Generator


def draw_params(config: MixerConfig, seed: int = 0, style: str = "normal", dtype: Any = np.float64) -> dict[str, Any]:
    """Draw flat canonical weights of a Mixer, with head, biases and LayerNorms random too.

    Kernels have variance 1 / fan_in, biases have a standard deviation of 1/4, and LayerNorm scales lie
    around 1 with the same deviation. `style` is their distribution:

        normal        normal
        heavy_tailed  Student-t with two degrees of freedom, which has no variance
        sparse        normal, with half of each array's elements, rounded down, exactly zero
        large_mean    normal, with 100 to 300 added to the stem's bias, so that the rows of the first LayerNorm have a
                      mean far larger than their deviation
        special       bit patterns: about a quarter NaN of any sign and payload, a quarter infinities, zeros, smallest
                      denormals and largest numbers of either sign, and the others any bits

    Raises `ConfigError` for an unknown style.
    """
    rng = _generator(seed, style)
    params = {}
    for name, binding in LINEN.bindings(config.num_blocks, head=config.num_classes > 0).items():
        shape = binding.shape(config.axis_sizes)
        if style == "special":
            params[name] = _special(shape, rng, dtype)
            continue
        fan_in = math.prod(shape[:-1]) if name.endswith("kernel") else 16
        centre = 1.0 if name.endswith("scale") else 0.0
        params[name] = centre + _unit_noise(shape, rng, style) / math.sqrt(fan_in)
    if style == "sparse":
        params = {name: _with_zeros(array, rng) for name, array in params.items()}
    if style == "large_mean":
        params["stem/bias"] += rng.uniform(100, 300)
    return {name: array.astype(dtype, copy=False) for name, array in params.items()}


def draw_images(
    config: MixerConfig, seed: int = 0, style: str = "normal", count: int = 3, dtype: Any = np.float64
) -> np.ndarray:
    """Draw `count` images (count, height, width, channels), around 0 and of unit scale, in a style of `draw_params`.

    The mean of "large_mean" images is 100 to 300. Raises `ConfigError` for an unknown style.
    """
    rng = _generator(seed, style)
    shape = count, *config.image_hw, config.in_channels
    if style == "special":
        return _special(shape, rng, dtype)
    images = _unit_noise(shape, rng, style)
    if style == "sparse":
        images = _with_zeros(images, rng)
    if style == "large_mean":
        images += rng.uniform(100, 300)
    return images.astype(dtype, copy=False)


def check_style(style: str) -> None:
    """Raise `ConfigError` for a style that is not in `STYLES`."""
    if style not in STYLES:
        raise ConfigError(f"style is {style!r}; it must be one of {', '.join(STYLES)}")


def _generator(seed: int, style: str) -> Rng:
    check_style(style)
    return np.random.default_rng(seed)


def _unit_noise(shape: tuple[int, ...], rng: Rng, style: str) -> np.ndarray:
    return rng.standard_t(2, shape) if style == "heavy_tailed" else rng.standard_normal(shape)


def _with_zeros(array: np.ndarray, rng: Rng) -> np.ndarray:
    """A copy in which half of the elements, rounded down, are zero."""
    result = array.copy()
    result.reshape(-1)[rng.permutation(array.size)[: array.size // 2]] = 0.0
    return result


def _special(shape: tuple[int, ...], rng: Rng, dtype: Any) -> np.ndarray:
    """Bit patterns that careless code does not preserve."""
    wanted = np.dtype(dtype)
    info = ml_dtypes.finfo(wanted)  # type: ignore[no-untyped-call]
    unsigned = np.dtype(f"u{wanted.itemsize}")
    extremes = np.array([np.inf, 0.0, info.smallest_subnormal, info.max], wanted)
    extremes = np.concatenate([extremes, -extremes]).view(unsigned)
    raw = rng.integers(0, 256, (*shape, wanted.itemsize), dtype=np.uint8).view(unsigned)[..., 0]
    nan = raw | np.array(np.inf, wanted).view(unsigned)  # infinity, in the one case where the payload is zero
    kinds = rng.integers(0, 4, shape)
    return np.choose(kinds, [raw, raw, nan, rng.choice(extremes, shape)]).view(wanted)
