"""Hypothesis strategies for Mixers: configs that a person can read, and weights of any bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from mixer_equiv.config import ACTIVATIONS, MixerConfig
from mixer_equiv.layouts import LAYOUTS, LINEN, Layout

DTYPES = ("float16", "bfloat16", "float32", "float64")


def layouts() -> st.SearchStrategy[Layout]:
    """Any registered layout."""
    return st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.__getitem__)


@st.composite
def configs(draw: st.DrawFn, /, *, max_blocks: int = 12, max_dim: int = 7, **fields: Any) -> MixerConfig:
    """Small Mixers of every kind: any patch, rectangular images, 1 to 5 channels, with or without a head.

    `fields` fix some fields of the config; what is drawn fits them. Shrinks to one block of ones.
    """
    dim = st.integers(1, max_dim)
    height, width = (draw(_side_sizes(fields, side)) for side in (0, 1))
    drawn = {
        "num_classes": draw(st.integers(0, max_dim)),
        "num_blocks": draw(st.integers(1, max_blocks)),
        "patch_size": (height[0], width[0]),
        "image_size": (height[1], width[1]),
        "in_channels": draw(st.integers(1, 5)),
        "hidden_dim": draw(dim),
        "tokens_mlp_dim": draw(dim),
        "channels_mlp_dim": draw(dim),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "layer_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
    }
    return MixerConfig(**{**drawn, **fields})


def _side_sizes(fields: dict[str, Any], side: int) -> st.SearchStrategy[tuple[int, int]]:
    """Patch and image size along the height (0) or width (1), as far as `fields` leave them open."""
    patch, image = (fields.get(name) for name in ("patch_size", "image_size"))
    patch, image = (size if size is None or isinstance(size, int) else size[side] for size in (patch, image))
    if image is not None:
        divisors = [size for size in range(1, image + 1) if image % size == 0]
        return st.sampled_from(divisors if patch is None else [patch]).map(lambda size: (size, image))
    patches = st.integers(1, 3) if patch is None else st.just(patch)
    return st.tuples(patches, st.integers(1, 4)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@st.composite
def arbitrary_params(draw: st.DrawFn, /, config: MixerConfig, dtype: Any) -> dict[str, np.ndarray]:
    """Canonical weights of arbitrary bits: NaNs of every payload, infinities, -0 and denormals among them."""
    wanted = np.dtype(dtype)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    params = {}
    for name, binding in LINEN.bindings(config.num_blocks, head=config.num_classes > 0).items():
        shape = binding.shape(config.axis_sizes)
        bits = rng.integers(0, 256, (*shape, wanted.itemsize), dtype=np.uint8)
        params[name] = _with_specials(bits.view(wanted)[..., 0].copy(), rng)
    return params


def _with_specials(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Overwrite about half of the entries with values that careless code changes."""
    info = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]
    specials = np.array(
        [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, info.smallest_subnormal, -info.smallest_subnormal, info.max],
        array.dtype,
    )
    chosen = rng.random(array.shape) < 0.5
    array[chosen] = rng.choice(specials, array.shape)[chosen]
    return array
