"""`MixerConfig`: sizes and conventions of an MLP-Mixer, and the sizes that follow from those of its arrays.

Knows no layout and no framework: arrays are here by the sizes of their named axes.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mixer_equiv.errors import ConfigError, did_you_mean

# Names as timm's `create_act` spells them: "gelu" is the exact form, with erf.
ACTIVATION_NAMES = ("gelu_tanh", "gelu", "relu", "silu", "quick_gelu")

# Fields that the shapes of arrays do not show: two Mixers of one shape may differ in them.
CONVENTIONS = ("activation", "layer_norm_eps")

# Names of the axes of parameters, in canonical order; the first three are those of a patch.
AXES = ("ph", "pw", "channels", "tokens", "hidden", "tokens_mlp", "channels_mlp", "classes")
PATCH_AXES = AXES[:3]

# Tolstikhin et al. 2021, table 1. Columns: _VARIANT_FIELDS.
VARIANTS = {
    "S": (8, 512, 256, 2048),
    "B": (12, 768, 384, 3072),
    "L": (24, 1024, 512, 4096),
    "H": (32, 1280, 640, 5120),
}
_VARIANT_FIELDS = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")

Size = int | tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerConfig:
    """Sizes and conventions of one MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601).

    Sizes are counts; `patch_size` and `image_size` are pixels, an int or (height, width), kept as
    a pair. `num_classes=0` means no head: the model returns the pooled features.
    `layer_norm_eps` and `activation` default to those of the official model.

    Raises `ConfigError` for sizes that no Mixer has.
    """

    num_classes: int
    num_blocks: int
    patch_size: Size
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    image_size: Size = 224
    in_channels: int = 3
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("patch_size", "image_size"):
            object.__setattr__(self, name, as_pair(name, getattr(self, name)))
        for name in (*_VARIANT_FIELDS, "in_channels", "num_classes"):
            object.__setattr__(self, name, as_count(name, getattr(self, name), 0 if name == "num_classes" else 1))
        check_conventions(self.activation, self.layer_norm_eps)
        object.__setattr__(self, "layer_norm_eps", float(self.layer_norm_eps))
        (height, width), (ph, pw) = self.image_hw, self.patch_hw
        if height % ph or width % pw:
            raise ConfigError(
                f"image_size {height}x{width} is not divisible by patch_size {ph}x{pw}; "
                f"the nearest that is: {_round_to(height, ph)}x{_round_to(width, pw)}"
            )

    @classmethod
    def from_name(cls, name: str, *, num_classes: int = 1000, **overrides: Any) -> MixerConfig:
        """The published variant called `name`: "S/32", "B/16", ..., with any patch size.

        Raises `ConfigError` for a name that is not one of S, B, L, H, a slash and a patch size, and for unknown fields.
        """
        match = re.fullmatch(r"(?:Mixer-)?([A-Za-z])[/_](\d+)", name) if isinstance(name, str) else None
        if not match or match[1].upper() not in VARIANTS:
            raise ConfigError(
                f"no Mixer is called {name!r}; a name is one of {', '.join(VARIANTS)}, a slash and a patch size: 'B/16'"
            )
        sizes: dict[str, Any] = dict(zip(_VARIANT_FIELDS, VARIANTS[match[1].upper()], strict=True))
        return cls.from_dict({**sizes, "patch_size": int(match[2]), "num_classes": num_classes, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MixerConfig:
        """A config from its fields, the inverse of `to_dict`. Raises `ConfigError` for unknown or missing ones."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ConfigError(
                f"MixerConfig has no field {', '.join(unknown)}; its fields are {', '.join(fields)}"
                f"{did_you_mean(str(unknown[0]), fields)}"
            )
        missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
        if missing:
            raise ConfigError(f"MixerConfig needs {', '.join(missing)} as well")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def replace(self, **changes: Any) -> MixerConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def resized(self, image_size: Size) -> MixerConfig:
        """A copy for another image size of as many tokens. Raises `ConfigError` that lists the fitting sizes."""
        return self.replace(image_size=_check_image_size(image_size, self.num_tokens, self.patch_hw))

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return self.patch_size  # type: ignore[return-value]  # normalised to a pair in __post_init__

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        return self.image_size  # type: ignore[return-value]  # normalised to a pair in __post_init__

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Number of patches along the height and the width."""
        (height, width), (ph, pw) = self.image_hw, self.patch_hw
        return height // ph, width // pw

    @property
    def num_tokens(self) -> int:
        """Number of patches in an image."""
        return self.grid_hw[0] * self.grid_hw[1]

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Size of every axis of a parameter, by the axis's name."""
        sizes = (*self.patch_hw, self.in_channels, self.num_tokens, self.hidden_dim)
        return dict(zip(AXES, (*sizes, self.tokens_mlp_dim, self.channels_mlp_dim, self.num_classes), strict=True))

    @property
    def num_parameters(self) -> int:
        """Number of trainable scalars, biases and LayerNorms included."""
        n = self.axis_sizes
        stem = (n["ph"] * n["pw"] * n["channels"] + 1) * n["hidden"]
        token_mixing = 2 * n["tokens"] * n["tokens_mlp"] + n["tokens_mlp"] + n["tokens"]
        channel_mixing = 2 * n["hidden"] * n["channels_mlp"] + n["channels_mlp"] + n["hidden"]
        block = token_mixing + channel_mixing + 4 * n["hidden"]
        head = (n["hidden"] + 1) * n["classes"]
        return stem + self.num_blocks * block + 2 * n["hidden"] + head

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations in the matrix products for one image."""
        n = self.axis_sizes
        stem = n["tokens"] * n["ph"] * n["pw"] * n["channels"] * n["hidden"]
        block = 2 * n["tokens"] * n["hidden"] * (n["tokens_mlp"] + n["channels_mlp"])
        return stem + self.num_blocks * block + n["hidden"] * n["classes"]

    @property
    def name(self) -> str | None:
        """The published variant's name, such as "B/16", or None for other sizes."""
        ph, pw = self.patch_hw
        sizes = tuple(getattr(self, field) for field in _VARIANT_FIELDS)
        letters = [letter for letter, variant in VARIANTS.items() if variant == sizes]
        return f"{letters[0]}/{ph}" if letters and ph == pw else None


def check_conventions(activation: Any, layer_norm_eps: Any) -> None:
    """Raise `ConfigError` for an activation or a LayerNorm eps that no model here computes."""
    if activation not in ACTIVATION_NAMES:
        raise ConfigError(
            f"activation is {activation!r}; it must be one of {', '.join(ACTIVATION_NAMES)}"
            f"{did_you_mean(str(activation), ACTIVATION_NAMES)}"
        )
    is_number = isinstance(layer_norm_eps, numbers.Real) and not isinstance(layer_norm_eps, bool)
    if not is_number or not 0 <= layer_norm_eps < 1:
        raise ConfigError(f"layer_norm_eps is {layer_norm_eps!r}; it must be a number in [0, 1), such as 1e-6")


class SizeDifference(NamedTuple):
    """A field of `MixerConfig` that is a size, and its values in two configs that disagree on it."""

    field: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.field} is {self.a} in one and {self.b} in the other"


def size_differences(a: MixerConfig, b: MixerConfig) -> list[SizeDifference]:
    """The sizes in which two configs differ, as `to_dict` has them; conventions are no sizes."""
    ours, theirs = a.to_dict(), b.to_dict()
    return [
        SizeDifference(name, ours[name], theirs[name])
        for name in ours
        if name not in CONVENTIONS and ours[name] != theirs[name]
    ]


def config_from_axes(
    sizes: Mapping[str, int], num_blocks: int, *, image_size: Size | None = None, **conventions: Any
) -> MixerConfig:
    """The config of a model whose parameters have these axis `sizes`.

    `sizes` are by axis name, like `MixerConfig.axis_sizes`; without "classes" there is no head. A stem may
    show axes of its patch only as a product, under their `joint_axis`: then the likeliest patch of
    `fitting_patches` that `image_size` allows is taken. Without `image_size` the image is the squarest of that
    many tokens. Raises `ConfigError` for an image of another number of tokens.
    """
    if not sizes.keys() >= set(PATCH_AXES):
        sizes = {**sizes, **_split_patch(sizes, image_size)}
    patch = sizes["ph"], sizes["pw"]
    hw = fitting_image_sizes(sizes["tokens"], patch)[0]
    if image_size is not None:
        hw = _check_image_size(image_size, sizes["tokens"], patch)
    return MixerConfig(
        num_classes=sizes.get("classes", 0),
        num_blocks=num_blocks,
        patch_size=patch,
        image_size=hw,
        in_channels=sizes["channels"],
        hidden_dim=sizes["hidden"],
        tokens_mlp_dim=sizes["tokens_mlp"],
        channels_mlp_dim=sizes["channels_mlp"],
        **conventions,
    )


def patch_columns(sizes: Mapping[str, int]) -> int | None:
    """Number of elements in a patch; None where the `sizes` of its axes, alone or joined, do not determine it."""
    shown = [axis for axis in sizes if set(axis.split()) <= set(PATCH_AXES)]
    seen = sorted(name for axis in shown for name in axis.split())
    return math.prod(sizes[axis] for axis in shown) if seen == sorted(PATCH_AXES) else None


def _split_patch(sizes: Mapping[str, int], image_size: Size | None) -> dict[str, int]:
    """Sizes of ph, pw and channels, from a joined axis of the stem."""
    columns = patch_columns(sizes)
    assert columns is not None
    splits = [dict(zip(PATCH_AXES, patch, strict=True)) for patch in fitting_patches(columns)]
    splits = [split for split in splits if all(sizes.get(axis, size) == size for axis, size in split.items())]
    if image_size is not None:
        hw = as_pair("image_size", image_size)
        splits = [s for s in splits if hw in fitting_image_sizes(sizes["tokens"], (s["ph"], s["pw"]))]
        if not splits:
            raise ConfigError(
                f"no patch of {columns} numbers splits an image of {hw[0]}x{hw[1]} into the {sizes['tokens']} tokens "
                "that the parameters have"
            )
    return splits[0]


def fitting_patches(columns: int) -> list[tuple[int, int, int]]:
    """Every (ph, pw, channels) with `columns` elements, likeliest first.

    Square patches of 3 channels come first, then square ones of 1 channel, then the squarest of 3 channels, of 1
    channel, and of any other number.
    """
    patches = [(ph, columns // c // ph, c) for c in _divisors(columns) for ph in _divisors(columns // c)]
    usual = {3: 0, 1: 1}
    return sorted(
        patches,
        key=lambda p: (p[2] not in usual, p[0] != p[1], usual.get(p[2], p[2]), abs(p[0] - p[1]), p),
    )


def _divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _check_image_size(image_size: Any, num_tokens: int, patch_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = as_pair("image_size", image_size)
    fitting = fitting_image_sizes(num_tokens, patch_hw)
    if (height, width) not in fitting:
        raise ConfigError(
            f"image_size {height}x{width} does not give the {num_tokens} tokens of {patch_hw[0]}x{patch_hw[1]} pixels "
            f"that the parameters have; sizes that do: {', '.join(f'{h}x{w}' for h, w in fitting)}"
        )
    return height, width


def fitting_image_sizes(num_tokens: int, patch_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Every (height, width) in pixels that splits into `num_tokens` patches, squarest grid first."""
    ph, pw = patch_hw
    rows = _divisors(num_tokens)
    rows.sort(key=lambda r: (abs(r - num_tokens // r), r))
    return [(r * ph, num_tokens // r * pw) for r in rows]


def joint_axis(axes: Iterable[str]) -> str:
    """The name of several axes that share a dimension, independent of their order; of one axis its own name."""
    return " ".join(sorted(axes, key=AXES.index))


def as_pair(name: str, size: Any) -> tuple[int, int]:
    """An int or a pair as (height, width). Raises `ConfigError`, which calls it `name`, for anything else."""
    pair = (size, size) if isinstance(size, numbers.Integral) else size
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"{name} is {size!r}; it must be an int or a (height, width) pair")
    return as_count(name, pair[0]), as_count(name, pair[1])


def as_image(image: Any) -> tuple[int, int, int]:
    """`image` as (channels, height, width). Raises `ConfigError` for anything but three counts."""
    if not isinstance(image, tuple | list) or len(image) != 3:
        raise ConfigError(f"image is {image!r}; it must be (channels, height, width), such as (3, 224, 224)")
    return (as_count("in_channels", image[0]), *as_pair("image_size", tuple(image[1:])))


def as_count(name: str, value: Any, at_least: int = 1) -> int:
    """`value` as an int. Raises `ConfigError`, which calls it `name`, for a smaller number and for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {at_least}")
    return int(value)


def _round_to(size: int, step: int) -> int:
    return max(step, step * round(size / step))
