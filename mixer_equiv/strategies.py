"""Hypothesis strategies for Mixers: configs that a person can read, weights and images of every kind.

    @given(data=st.data(), config=configs(max_blocks=2))
    def test_my_mixer_is_the_official_one(data, config):
        weights = data.draw(params(config, style="heavy_tailed"))
        batch = data.draw(images(config))
        ...

Hypothesis draws the structure and seeds, and NumPy makes the arrays, so that examples are cheap and
shrink to small configs and seed 0. A failing example is printed as the calls that make it again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from mixer_equiv.config import ACTIVATIONS, MixerConfig
from mixer_equiv.draws import STYLES, draw_images, draw_params
from mixer_equiv.formulation import CHANNELS, PATCH, TOKENS, Formulation
from mixer_equiv.layouts import LAYOUTS, Layout

__all__ = ["DTYPES", "FEW_CONFIGS", "STYLES", "configs", "few_configs", "formulations", "images", "layouts", "params"]

_SEEDS = st.integers(0, 2**32 - 1)

DTYPES = ("float16", "bfloat16", "float32", "float64")

_FIELDS = ("patch_size", "image_size", "in_channels", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "num_classes")
_FEW: tuple[tuple[Any, ...], ...] = (
    ((2, 3), (4, 9), 3, 10, 5, 11, 7, "gelu_tanh"),
    ((3, 1), (6, 4), 1, 13, 5, 7, 0, "gelu"),
    ((1, 2), (3, 8), 5, 11, 7, 9, 4, "relu"),
    ((2, 2), (2, 6), 4, 9, 8, 12, 5, "silu"),
    ((4, 3), (8, 9), 2, 12, 10, 5, 3, "quick_gelu"),
)

# No two sizes of a config are equal; patches and images are oblong, channels 1 to 5, and one has no head.
FEW_CONFIGS = tuple(
    MixerConfig(num_blocks=2, **dict(zip((*_FIELDS, "activation"), sizes, strict=True))) for sizes in _FEW
)


def few_configs() -> st.SearchStrategy[MixerConfig]:
    """One of `FEW_CONFIGS`: for tests that compile a program for each config, and keep it."""
    return st.sampled_from(FEW_CONFIGS)


@st.composite
def configs(
    draw: st.DrawFn,
    /,
    *,
    max_blocks: int = 12,
    min_dim: int = 1,
    max_dim: int = 7,
    min_hidden_dim: int | None = None,
    **fields: Any,
) -> MixerConfig:
    """Small Mixers of every kind: any patch, rectangular images, 1 to 5 channels, with or without a head.

    `min_dim` and `max_dim` bound the dims and classes, and `min_dim` the tokens; `hidden_dim` is at least
    `min_hidden_dim`, since a LayerNorm of one or two channels leaves nothing but signs, and of a few may be
    ill-conditioned. `fields` fix some fields of the config; what is drawn fits them. Shrinks to one block of
    ones, or of what is the least.
    """
    dim = st.integers(min_dim, max_dim)
    least = min_dim if min_hidden_dim is None else min_hidden_dim
    height, width = (draw(_side_sizes(fields, side)) for side in (0, 1))
    assume(height[1] // height[0] * (width[1] // width[0]) >= min_dim)
    drawn = {
        "num_classes": draw(st.just(0) | dim),
        "num_blocks": draw(st.integers(1, max_blocks)),
        "patch_size": (height[0], width[0]),
        "image_size": (height[1], width[1]),
        "in_channels": draw(st.integers(1, 5)),
        "hidden_dim": draw(st.integers(least, max(least, max_dim))),
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


def params(config: MixerConfig, style: str = "normal", dtype: Any = np.float64) -> st.SearchStrategy[dict[str, Any]]:
    """Flat canonical weights for `config`, by name, in one of the `STYLES` that `draw_params` describes.

    Nest them with `flax.traverse_util.unflatten_dict(weights, sep="/")` for a Flax model, or let `convert`
    take them to any layout.
    """
    return st.builds(draw_params, st.just(config), seed=_SEEDS, style=st.just(style), dtype=_name(dtype))


def images(
    config: MixerConfig, style: str = "normal", count: int = 3, dtype: Any = np.float64
) -> st.SearchStrategy[np.ndarray]:
    """`count` images (count, height, width, channels) for `config`, in one of the `STYLES`."""
    kept = {"style": st.just(style), "count": st.just(count), "dtype": _name(dtype)}
    return st.builds(draw_images, st.just(config), seed=_SEEDS, **kept)


def _name(dtype: Any) -> st.SearchStrategy[str]:
    """The dtype as examples print it so that they can be run again."""
    return st.just(str(np.dtype(dtype)))


def formulations(**fields: str) -> st.SearchStrategy[Formulation]:
    """Any formulation, or those with some of `patch`, `tokens`, `channels` fixed. Shrinks to the official one."""
    known = {"patch": PATCH, "tokens": TOKENS, "channels": CHANNELS}
    drawn = {field: st.sampled_from(names) for field, names in known.items()}
    return st.builds(Formulation, **{**drawn, **{field: st.just(name) for field, name in fields.items()}})


def layouts(*, writable: bool = False) -> st.SearchStrategy[Layout]:
    """Any registered layout, or any that can be written."""
    names = sorted(name for name, layout in LAYOUTS.items() if not (writable and layout.read_only))
    return st.sampled_from(names).map(LAYOUTS.__getitem__)
