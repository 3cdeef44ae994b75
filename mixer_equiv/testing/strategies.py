"""Hypothesis strategies for Mixers: configs that a person can read, weights and images of every kind.

    @given(data=st.data(), config=configs(max_blocks=2))
    def test_my_mixer_is_the_official_one(data, config):
        weights = data.draw(params(config, style="heavy_tailed"))
        batch = data.draw(images(config))
        ...

Hypothesis draws sizes and seeds, and NumPy makes the arrays: examples are cheap, and shrink to small configs and
seed 0. A failing example is printed as the calls that make it again, where these are shorter than its numbers.
Nothing here compares or runs models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import Phase
from hypothesis import strategies as st

from mixer_equiv.arrays import interop
from mixer_equiv.config import ACTIVATION_NAMES, MixerConfig, as_count
from mixer_equiv.errors import ConfigError
from mixer_equiv.formulation import CHANNELS_CHOICES, PATCH_CHOICES, TOKENS_CHOICES, Formulation
from mixer_equiv.layouts import LAYOUTS, Layout, get_layout
from mixer_equiv.random_weights import STYLES, check_style, draw_images, draw_params

__all__ = [
    "DTYPES",
    "FEW_CONFIGS",
    "PHASES",
    "STYLES",
    "configs",
    "draw_images",
    "draw_params",
    "few_configs",
    "formulations",
    "images",
    "layouts",
    "params",
]

_SEEDS = st.integers(0, 2**32 - 1)

# Names of the dtypes that parameters may have: float16, bfloat16, float32 and float64.
DTYPES = tuple(interop.DTYPES)

# All phases but the one that explains failures: it traces every line that runs, those of torch and JAX too, which takes
# several times as long as finding the failure and shrinking it. For `settings(phases=PHASES)`.
PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)

_FIELDS = ("patch_size", "image_size", "in_channels", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "num_classes")
_FEW: tuple[tuple[Any, ...], ...] = (
    ((2, 3), (4, 9), 3, 10, 5, 11, 7, "gelu_tanh"),
    ((3, 1), (6, 4), 1, 13, 5, 7, 0, "gelu"),
    ((1, 2), (3, 8), 5, 11, 7, 9, 4, "relu"),
    ((2, 2), (2, 6), 4, 9, 8, 12, 5, "silu"),
    ((4, 3), (8, 9), 2, 12, 10, 5, 3, "quick_gelu"),
)

# In each config all sizes differ, and patches and images are oblong; channels are 1 to 5, and the second has no head.
FEW_CONFIGS = tuple(
    MixerConfig(num_blocks=2, **dict(zip((*_FIELDS, "activation"), sizes, strict=True))) for sizes in _FEW
)


def few_configs(*, allow_headless: bool = False, **fields: Any) -> st.SearchStrategy[MixerConfig]:
    """Draw one of `FEW_CONFIGS`, with some `fields` changed: for tests that compile a program for each config.

    However a test fails, it does so after the compilation of four programs, or five with `allow_headless`.
    Raises `ConfigError` for unknown fields, and for fields that do not fit the others.
    """
    _normalize(fields)
    return st.sampled_from([config.replace(**fields) for config in FEW_CONFIGS if config.num_classes or allow_headless])


def configs(
    *,
    max_blocks: int = 12,
    min_dim: int = 1,
    max_dim: int = 7,
    min_hidden_dim: int | None = None,
    allow_headless: bool = False,
    **fields: Any,
) -> st.SearchStrategy[MixerConfig]:
    """Draw small Mixers of every kind: any patch, rectangular images, 1 to 5 channels.

    With `allow_headless` some have no head (`num_classes=0`), which many implementations do not offer.
    `min_dim` and `max_dim` bound the dims and classes, and `min_dim` also the number of tokens. `hidden_dim` is at
    least `min_hidden_dim`: a LayerNorm of one or two channels leaves nothing but signs, and one of a few may be
    ill-conditioned. `fields` fix some fields of the config, and the others are drawn to fit. Shrinks to one block
    with all sizes 1, or at their least. Raises `ConfigError` for unknown fields, and for fields outside of the bounds.
    """
    least = min_dim if min_hidden_dim is None else min_hidden_dim
    bounds = {"max_blocks": max_blocks, "min_dim": min_dim, "max_dim": max_dim, "min_hidden_dim": least}
    for name, bound in bounds.items():
        as_count(name, bound)
    if min_dim > max_dim:
        raise ConfigError(f"min_dim is {min_dim}, which is more than max_dim, {max_dim}")
    fields = _normalize(fields)
    if min_hidden_dim is not None and fields.get("hidden_dim", least) < least:
        raise ConfigError(f"hidden_dim is {fields['hidden_dim']}, which is less than min_hidden_dim, {least}")
    most = _max_patches(fields, 0) * _max_patches(fields, 1)
    if most < min_dim:
        raise ConfigError(f"min_dim is {min_dim}, which also bounds the tokens, and there are at most {most}")
    dim = st.integers(min_dim, max_dim)
    classes = st.just(0) | dim if allow_headless else dim
    return _configs(fields, dim, (least, max(least, max_dim)), classes, max_blocks, min_dim)


@st.composite
def _configs(
    draw: st.DrawFn,
    /,
    fields: dict[str, Any],
    dim: st.SearchStrategy[int],
    hidden: tuple[int, int],
    classes: st.SearchStrategy[int],
    max_blocks: int,
    min_tokens: int,
) -> MixerConfig:
    heights, widths = (_side_sizes(fields, side) for side in (0, 1))
    widest = max(map(_patches, widths))
    height = draw(st.sampled_from([size for size in heights if _patches(size) * widest >= min_tokens]))
    width = draw(st.sampled_from([size for size in widths if _patches(size) * _patches(height) >= min_tokens]))
    drawn = {
        "num_classes": draw(classes),
        "num_blocks": draw(st.integers(1, max_blocks)),
        "patch_size": (height[0], width[0]),
        "image_size": (height[1], width[1]),
        "in_channels": draw(st.integers(1, 5)),
        "hidden_dim": draw(st.integers(*hidden)),
        "tokens_mlp_dim": draw(dim),
        "channels_mlp_dim": draw(dim),
        "activation": draw(st.sampled_from(ACTIVATION_NAMES)),
        "layer_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
    }
    return MixerConfig(**{**drawn, **fields})


def _normalize(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields in the form that a config gives them. Raises `ConfigError` for unknown ones."""
    unknown = sorted(fields.keys() - {field.name for field in dataclasses.fields(MixerConfig)})
    if unknown:
        raise ConfigError(f"a MixerConfig has no {', '.join(unknown)}")
    ones = dict.fromkeys(("num_blocks", *_FIELDS), 1)
    config = MixerConfig(**{**ones, "image_size": fields.get("patch_size", 1), **fields})
    return {name: getattr(config, name) for name in fields}


_MAX_PATCHES = 4  # along one side, where the image's size is drawn


def _fixed_sizes(fields: dict[str, Any], side: int) -> tuple[int | None, int | None]:
    """Patch and image size along the height (0) or width (1); None for a size that is to be drawn."""
    patch, image = (fields.get(name) for name in ("patch_size", "image_size"))
    return patch and patch[side], image and image[side]


def _max_patches(fields: dict[str, Any], side: int) -> int:
    patch, image = _fixed_sizes(fields, side)
    return _MAX_PATCHES if image is None else image // (patch or 1)


def _side_sizes(fields: dict[str, Any], side: int) -> list[tuple[int, int]]:
    """Every (patch, image) size along the height (0) or width (1) that agrees with `fields`, the simplest first."""
    patch, image = _fixed_sizes(fields, side)
    if image is not None:
        return [(size, image) for size in range(1, image + 1) if size == (patch or size) and image % size == 0]
    patches = (1, 2, 3) if patch is None else (patch,)
    return [(size, size * count) for size in patches for count in range(1, _MAX_PATCHES + 1)]


def _patches(size: tuple[int, int]) -> int:
    return size[1] // size[0]


def params(config: MixerConfig, style: str = "normal", dtype: Any = np.float64) -> st.SearchStrategy[dict[str, Any]]:
    """Draw flat canonical weights for `config`, by name, in one of the `STYLES` that `draw_params` describes.

    Nest them with `flax.traverse_util.unflatten_dict(weights, sep="/")` for a Flax model, or let `convert`
    take them to any layout. Raises `ConfigError` for an unknown style, a dtype not in `DTYPES`, and a `config`
    that is none.
    """
    arguments = _check_arguments("params", config, style, dtype)
    return st.builds(draw_params, st.just(config), seed=_SEEDS, **arguments)


def images(
    config: MixerConfig, style: str = "normal", count: int = 3, dtype: Any = np.float64
) -> st.SearchStrategy[np.ndarray]:
    """Draw `count` images (count, height, width, channels) for `config`, in one of the `STYLES`.

    Raises `ConfigError` for an unknown style, a dtype not in `DTYPES`, and a `count` or `config` that is none.
    """
    arguments = _check_arguments("images", config, style, dtype)
    count = as_count("count", count, 0)
    return st.builds(draw_images, st.just(config), seed=_SEEDS, count=st.just(count), **arguments)


def _check_arguments(function: str, config: Any, style: str, dtype: Any) -> dict[str, st.SearchStrategy[str]]:
    """Style and dtype as strategies of values whose repr in a printed example can be run again."""
    if not isinstance(config, MixerConfig):
        raise ConfigError(
            f"{function} takes a MixerConfig, and found a {type(config).__name__}; draw one first, by "
            f"data.draw(configs()) or configs().flatmap({function})"
        )
    check_style(style)
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name}; it must be one of {', '.join(DTYPES)}")
    return {"style": st.just(style), "dtype": st.just(name)}


def formulations(**fields: str) -> st.SearchStrategy[Formulation]:
    """Draw a formulation, with some of `patch`, `tokens`, `channels` fixed. Shrinks to the official one."""
    known = {"patch": PATCH_CHOICES, "tokens": TOKENS_CHOICES, "channels": CHANNELS_CHOICES}
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        raise ConfigError(f"a Formulation has no {', '.join(unknown)}; it has {', '.join(known)}")
    drawn = {field: st.sampled_from(names) for field, names in known.items()}
    return st.builds(Formulation, **{**drawn, **{field: st.just(name) for field, name in fields.items()}})


def layouts(*, writable: bool = False) -> st.SearchStrategy[Layout]:
    """Draw a registered layout, or only those that can be written."""
    names = sorted(name for name, layout in LAYOUTS.items() if not (writable and layout.read_only))
    return st.sampled_from(names).map(get_layout)
