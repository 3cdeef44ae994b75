import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from mixer_equiv import ConfigError, MixerConfig
from mixer_equiv.config import (
    ACTIVATION_NAMES,
    AXES,
    CONVENTIONS,
    PATCH_AXES,
    VARIANTS,
    as_image,
    as_pair,
    check_conventions,
    config_from_axes,
    fitting_image_sizes,
    fitting_patches,
    joint_axis,
    patch_columns,
    size_differences,
)
from mixer_equiv.layouts import LINEN

FIELDS = {
    "num_classes": 5,
    "num_blocks": 2,
    "patch_size": 4,
    "image_size": (8, 12),
    "hidden_dim": 6,
    "tokens_mlp_dim": 7,
    "channels_mlp_dim": 9,
}

# name, parameters with a 1000-class head, GMACs at 224x224.
PUBLISHED = [
    ("S/32", 19.10e6, 1.00),
    ("S/16", 18.53e6, 3.78),
    ("B/32", 60_293_428, 3.24),
    ("B/16", 59_880_472, 12.60),
    ("L/32", 206.94e6, 11.25),
    ("L/16", 208_196_168, 44.55),
    ("H/14", 432.35e6, 120.99),
]


@pytest.mark.parametrize(("name", "parameters", "gmacs"), PUBLISHED)
def test_published_variants_have_the_published_sizes(name: str, parameters: Any, gmacs: Any) -> None:
    config = MixerConfig.from_name(name)
    exact = isinstance(parameters, int)
    assert config.num_parameters == parameters if exact else abs(config.num_parameters - parameters) <= 5000
    assert abs(config.macs / 1e9 - gmacs) <= 0.005
    assert config.name == name
    assert (config.activation, config.layer_norm_eps) == ("gelu_tanh", 1e-6)


@pytest.mark.parametrize("name", ["S/8", "Mixer-S_8", "s/8"])
def test_any_patch_size_and_spelling_names_a_variant(name: str) -> None:
    assert MixerConfig.from_name(name) == MixerConfig.from_name("S/16", patch_size=8)


def test_overrides_take_the_place_of_the_variant_s_fields() -> None:
    config = MixerConfig.from_name("B/16", num_classes=0, image_size=(32, 64))
    assert (config.num_classes, config.image_size, config.num_tokens) == (0, (32, 64), 8)


@pytest.mark.parametrize("name", ["X/16", "B", "B/0x", "B-16", "", "B/16/2"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=r"S, B, L, H, a slash and a patch size: 'B/16'"):
        MixerConfig.from_name(name)


def test_all_but_the_name_is_said_by_keyword() -> None:
    assert MixerConfig.from_name(name="S/8", num_classes=3) == MixerConfig.from_name("S/8", num_classes=3)
    with pytest.raises(TypeError):
        MixerConfig.from_name("S/8", 3)
    with pytest.raises(TypeError):
        MixerConfig(*FIELDS.values())


def test_sizes_are_kept_as_pairs_of_plain_ints() -> None:
    config = MixerConfig(**{**FIELDS, "num_blocks": np.int64(2), "image_size": [8, 12]})
    assert config == MixerConfig(**FIELDS)
    assert config.patch_size == (4, 4)
    assert type(config.num_blocks) is int
    assert config.grid_hw == (2, 3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_blocks", 0, "num_blocks is 0; it must be a whole number of at least 1"),
        ("num_classes", -1, "num_classes is -1; it must be a whole number of at least 0"),
        ("hidden_dim", 2.5, "hidden_dim is 2.5"),
        ("hidden_dim", True, "hidden_dim is True"),
        ("patch_size", (4, 0), "patch_size is 0"),
        ("patch_size", (4, 4, 4), r"patch_size is \(4, 4, 4\); it must be an int or a \(height, width\) pair"),
        ("image_size", "8x8", "image_size is '8x8'"),
        ("image_size", (8, 13), "image_size 8x13 is not divisible by patch_size 4x4; the nearest that is: 8x12"),
        ("activation", "mish", "activation is 'mish'; it must be one of gelu_tanh, gelu, relu, silu, quick_gelu"),
        ("layer_norm_eps", -1e-6, "layer_norm_eps is -1e-06"),
        ("layer_norm_eps", "1e-6", "layer_norm_eps is '1e-6'"),
    ],
)
def test_a_config_of_no_mixer_is_refused(field: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixerConfig(**{**FIELDS, field: value})


def test_a_config_is_frozen_and_hashable() -> None:
    config = MixerConfig(**FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_blocks = 3  # type: ignore[misc]
    assert hash(config) == hash(MixerConfig(**FIELDS))


def test_to_dict_and_back_is_the_identity() -> None:
    config = MixerConfig(**FIELDS, activation="silu", layer_norm_eps=1e-4, in_channels=2)
    assert MixerConfig.from_dict(config.to_dict()) == config


def test_unknown_and_missing_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="no field depth; its fields are num_classes"):
        MixerConfig.from_dict({**FIELDS, "depth": 3})
    with pytest.raises(ConfigError, match="needs num_blocks, hidden_dim as well"):
        MixerConfig.from_dict({n: v for n, v in FIELDS.items() if n not in ("num_blocks", "hidden_dim")})


def test_fitting_image_sizes_give_the_tokens_squarest_first() -> None:
    assert fitting_image_sizes(12, (2, 3)) == [(6, 12), (8, 9), (4, 18), (12, 6), (2, 36), (24, 3)]
    assert fitting_image_sizes(7, (4, 4)) == [(4, 28), (28, 4)]


def test_resizing_keeps_the_tokens() -> None:
    config = MixerConfig(**FIELDS)
    assert config.resized((12, 8)).num_tokens == config.num_tokens
    with pytest.raises(ConfigError, match=r"does not give the 6 tokens .* sizes that do: 8x12, 12x8, 4x24, 24x4"):
        config.resized(16)


# Every size a prime of its own, so that no count is right by another's value.
PRIMES = MixerConfig(
    num_classes=29,
    num_blocks=3,
    patch_size=(2, 5),
    image_size=(14, 55),
    in_channels=13,
    hidden_dim=17,
    tokens_mlp_dim=19,
    channels_mlp_dim=23,
)


@pytest.mark.parametrize("num_classes", [29, 1, 0])
def test_parameters_are_counted_as_the_layout_has_them(num_classes: Any) -> None:
    config = PRIMES.replace(num_classes=num_classes)
    bindings = LINEN.bindings(3, head=num_classes > 0).values()
    assert config.num_parameters == sum(math.prod(binding.shape(config.axis_sizes)) for binding in bindings)


@pytest.mark.parametrize("num_classes", [29, 0])
def test_macs_are_every_kernel_s_numbers_times_how_often_it_is_applied(num_classes: Any) -> None:
    config = PRIMES.replace(num_classes=num_classes)
    times = {"stem": 77, "token_mixing": 17, "channel_mixing": 77, "head": 1}
    kernels = [b for b in LINEN.bindings(3, head=num_classes > 0).values() if b.canonical.endswith("kernel")]
    counts = [
        next(times[part] for part in b.canonical.split("/") if part in times) * math.prod(b.shape(config.axis_sizes))
        for b in kernels
    ]
    assert config.macs == sum(counts)


def test_axes_have_the_sizes_of_the_fields_in_the_order_of_their_names() -> None:
    assert PRIMES.axis_sizes == dict(zip(AXES, (2, 5, 13, 77, 17, 19, 23, 29), strict=True))
    assert (PRIMES.grid_hw, PRIMES.num_tokens) == ((7, 11), 77)
    assert PATCH_AXES == AXES[:3] == ("ph", "pw", "channels")


def test_variants_are_table_1_of_the_paper() -> None:
    assert VARIANTS == {
        "S": (8, 512, 256, 2048),
        "B": (12, 768, 384, 3072),
        "L": (24, 1024, 512, 4096),
        "H": (32, 1280, 640, 5120),
    }


def test_only_square_patches_and_published_sizes_have_a_name() -> None:
    assert MixerConfig.from_name("L/4").name == "L/4"
    assert MixerConfig.from_name("L/4", patch_size=(4, 2)).name is None
    assert MixerConfig.from_name("L/4", patch_size=(2, 4)).name is None
    for field in ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim"):
        assert MixerConfig.from_name("L/4", **{field: 7}).name is None
    assert PRIMES.name is None


def test_defaults_are_the_official_model_on_photographs() -> None:
    config = MixerConfig.from_name("S/32")
    assert (config.image_size, config.in_channels, config.num_classes) == ((224, 224), 3, 1000)
    assert (config.activation, config.layer_norm_eps) == ("gelu_tanh", 1e-6)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("eps", [0, 0.0, 1e-12, 0.999, np.float32(1e-5)])
def test_conventions_that_a_model_computes_are_taken(activation: Any, eps: Any) -> None:
    check_conventions(activation, eps)
    config = PRIMES.replace(activation=activation, layer_norm_eps=eps)
    assert (config.activation, config.layer_norm_eps, type(config.layer_norm_eps)) == (activation, eps, float)


@pytest.mark.parametrize("eps", [1, 1.0, 2, -1e-300, math.nan, math.inf, True, False, None, 1j])
def test_an_eps_outside_zero_to_one_is_refused(eps: Any) -> None:
    with pytest.raises(ConfigError, match=r"layer_norm_eps is .*; it must be a number in \[0, 1\), such as 1e-6"):
        check_conventions("gelu", eps)


@pytest.mark.parametrize(("size", "pair"), [(3, (3, 3)), ((2, 5), (2, 5)), ([2, 5], (2, 5)), (np.int16(4), (4, 4))])
def test_a_size_is_one_number_or_two(size: Any, pair: Any) -> None:
    assert as_pair("size", size) == pair
    assert all(type(number) is int for number in as_pair("size", size))


@pytest.mark.parametrize("size", [0, -1, (0, 1), (1, 0), 1.0, (1,), (1, 2, 3), "12", {1, 2}, None, (1, 2.0), True])
def test_what_is_no_size_is_refused_by_its_name(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"^kernel_size is "):
        as_pair("kernel_size", size)


@pytest.mark.parametrize("field", ["num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "in_channels"])
def test_counts_begin_at_one_and_those_of_classes_at_zero(field: Any) -> None:
    assert getattr(PRIMES.replace(**{field: 1, "num_classes": 0}), field) == 1
    with pytest.raises(ConfigError, match=f"{field} is 0; it must be a whole number of at least 1"):
        PRIMES.replace(**{field: 0})


@pytest.mark.parametrize(
    ("image", "patch", "nearest"),
    [
        ((8, 9), 4, "8x8"),
        ((1, 4), 4, "4x4"),
        ((9, 11), 4, "8x12"),
        ((13, 14), (5, 7), "15x14"),
        ((10, 8), (5, 3), "10x9"),
    ],
)
def test_an_image_that_patches_do_not_fill_is_refused_with_the_nearest(image: Any, patch: Any, nearest: Any) -> None:
    with pytest.raises(ConfigError, match=f"the nearest that is: {nearest}$"):
        PRIMES.replace(image_size=image, patch_size=patch)


@pytest.mark.parametrize("rows", range(1, 5))
@pytest.mark.parametrize("columns", [1, 3, 7])
def test_axes_give_the_config_back(rows: Any, columns: Any) -> None:
    config = PRIMES.replace(image_size=(2 * rows, 5 * columns), activation="silu", layer_norm_eps=1e-3)
    conventions = {"activation": "silu", "layer_norm_eps": 1e-3}
    assert config_from_axes(config.axis_sizes, 3, image_size=config.image_size, **conventions) == config
    squarest = config_from_axes(config.axis_sizes, 3, **conventions)
    assert squarest == config.replace(image_size=fitting_image_sizes(rows * columns, (2, 5))[0])


def test_axes_without_classes_have_no_head() -> None:
    sizes = {axis: size for axis, size in PRIMES.axis_sizes.items() if axis != "classes"}
    assert config_from_axes(sizes, 3, image_size=(14, 55)) == PRIMES.replace(num_classes=0)


def test_an_image_that_does_not_have_the_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_size 14x50 does not give the 77 tokens of 2x5 pixels"):
        config_from_axes(PRIMES.axis_sizes, 3, image_size=(14, 50))


@pytest.mark.parametrize(
    ("columns", "likeliest"),
    [
        (768, (16, 16, 3)),
        (256, (16, 16, 1)),
        (12, (2, 2, 3)),
        (3, (1, 1, 3)),
        (1, (1, 1, 1)),
        (18, (2, 3, 3)),
        (10, (2, 5, 1)),
        (8, (2, 4, 1)),
        (100, (10, 10, 1)),
    ],
)
def test_the_likeliest_patch_is_square_of_three_channels_else_of_one_else_the_squarest(
    columns: Any, likeliest: Any
) -> None:
    assert fitting_patches(columns)[0] == likeliest


@pytest.mark.parametrize("columns", [1, 7, 12, 36, 60])
def test_all_patches_are_fitting_and_each_is_there_once(columns: Any) -> None:
    patches = fitting_patches(columns)
    every = {
        (ph, pw, c)
        for ph in range(1, columns + 1)
        for pw in range(1, columns + 1)
        for c in range(1, columns + 1)
        if ph * pw * c == columns
    }
    assert len(patches) == len(every)
    assert set(patches) == every


def test_patches_are_ordered_from_the_usual_to_the_odd() -> None:
    assert fitting_patches(12) == [
        (2, 2, 3),
        (1, 4, 3),
        (4, 1, 3),
        (3, 4, 1),
        (4, 3, 1),
        (2, 6, 1),
        (6, 2, 1),
        (1, 12, 1),
        (12, 1, 1),
        (1, 1, 12),
        (2, 3, 2),
        (3, 2, 2),
        (1, 6, 2),
        (6, 1, 2),
        (1, 3, 4),
        (3, 1, 4),
        (1, 2, 6),
        (2, 1, 6),
    ]


@pytest.mark.parametrize("tokens", [1, 6, 7, 36, 60])
def test_all_image_sizes_are_fitting_and_each_is_there_once(tokens: Any) -> None:
    sizes = fitting_image_sizes(tokens, (3, 2))
    assert len(sizes) == len(set(sizes)) == sum(tokens % n == 0 for n in range(1, tokens + 1))
    assert all(h % 3 == 0 and w % 2 == 0 and h // 3 * (w // 2) == tokens for h, w in sizes)


JOINT = {**{axis: PRIMES.axis_sizes[axis] for axis in AXES[3:]}, "ph pw channels": 768}


def test_a_joint_patch_is_split_as_the_likeliest_that_the_image_allows() -> None:
    tokens = {**JOINT, "tokens": 36}
    assert config_from_axes(tokens, 3).patch_size == (16, 16)
    assert config_from_axes(tokens, 3).in_channels == 3
    eights = config_from_axes(tokens, 3, image_size=48)
    assert (eights.patch_size, eights.in_channels, eights.image_size) == ((8, 8), 12, (48, 48))
    with pytest.raises(ConfigError, match="no patch of 768 numbers splits an image of 35x35 into the 36 tokens"):
        config_from_axes(tokens, 3, image_size=35)


def test_what_is_known_of_a_joint_patch_is_kept() -> None:
    sizes = {**{axis: size for axis, size in JOINT.items() if axis != "ph pw channels"}, "ph pw": 24, "channels": 5}
    config = config_from_axes(sizes, 3)
    assert (config.in_channels, config.patch_hw[0] * config.patch_hw[1]) == (5, 24)
    sizes = {**{axis: size for axis, size in JOINT.items() if axis != "ph pw channels"}, "ph channels": 24, "pw": 2}
    assert config_from_axes(sizes, 3).patch_hw[1] == 2


def test_a_patch_s_numbers_are_known_only_if_every_axis_is_seen_once() -> None:
    assert patch_columns({"ph": 2, "pw": 3, "channels": 5, "hidden": 7}) == 30
    assert patch_columns({"ph pw": 6, "channels": 5}) == 30
    assert patch_columns({"ph pw channels": 30}) == 30
    assert patch_columns({"ph": 2, "pw": 3}) is None
    assert patch_columns({"ph pw": 6, "pw channels": 15}) is None
    assert patch_columns({}) is None


def test_axes_joined_have_one_name_whatever_their_order() -> None:
    assert joint_axis(("channels", "pw", "ph")) == joint_axis(["ph", "channels", "pw"]) == "ph pw channels"
    assert joint_axis(["classes"]) == "classes"


def test_an_image_is_three_counts() -> None:
    assert as_image((3, 224, 192)) == (3, 224, 192)
    assert as_image([1, 2, 3]) == (1, 2, 3)
    for image in ((3, 224), (1, 3, 224, 224), 224, "abc", (3, 0, 4)):
        said = "must be a whole number" if image == (3, 0, 4) else r"must be \(channels, height, width\)"
        with pytest.raises(ConfigError, match=said):
            as_image(image)


def test_a_variant_is_named_by_its_patch_of_any_size() -> None:
    config = MixerConfig.from_name("B/16", image_size=4800)
    assert config.replace(patch_size=(int("300"), int("300"))).name == "B/300"
    assert config.replace(patch_size=(300, 200)).name is None


def test_what_is_optional_is_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        config_from_axes(MixerConfig(**FIELDS).axis_sizes, 2, 8)
    assert config_from_axes(sizes=MixerConfig(**FIELDS).axis_sizes, num_blocks=2).num_blocks == 2


def test_sizes_that_differ_are_named_with_both_values_and_conventions_are_not() -> None:
    ours = MixerConfig(**FIELDS)
    theirs = ours.replace(hidden_dim=ours.hidden_dim + 1, activation="gelu", layer_norm_eps=1e-5)
    (difference,) = size_differences(ours, theirs)
    assert difference == ("hidden_dim", ours.hidden_dim, ours.hidden_dim + 1)
    assert str(difference) == f"hidden_dim is {ours.hidden_dim} in one and {ours.hidden_dim + 1} in the other"
    assert size_differences(ours, ours.replace(activation="relu")) == []
    every = MixerConfig(
        num_classes=9,
        num_blocks=3,
        patch_size=(1, 7),
        image_size=(5, 77),
        in_channels=2,
        hidden_dim=91,
        tokens_mlp_dim=92,
        channels_mlp_dim=93,
    )
    assert [difference.field for difference in size_differences(ours, every)] == [
        field.name for field in dataclasses.fields(MixerConfig) if field.name not in CONVENTIONS
    ]
