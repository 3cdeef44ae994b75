import dataclasses

import numpy as np
import pytest

from mixer_equiv import ConfigError, MixerConfig
from mixer_equiv.config import fitting_image_sizes

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
def test_published_variants_have_the_published_sizes(name, parameters, gmacs):
    config = MixerConfig.from_name(name)
    exact = isinstance(parameters, int)
    assert config.num_parameters == parameters if exact else abs(config.num_parameters - parameters) <= 5000
    assert abs(config.macs / 1e9 - gmacs) <= 0.005
    assert config.name == name
    assert (config.activation, config.layer_norm_eps) == ("gelu_tanh", 1e-6)


@pytest.mark.parametrize("name", ["S/8", "Mixer-S_8", "s/8"])
def test_any_patch_size_and_spelling_names_a_variant(name):
    assert MixerConfig.from_name(name) == MixerConfig.from_name("S/16", patch_size=8)


def test_overrides_take_the_place_of_the_variant_s_fields():
    config = MixerConfig.from_name("B/16", num_classes=0, image_size=(32, 64))
    assert (config.num_classes, config.image_size, config.num_tokens) == (0, (32, 64), 8)


@pytest.mark.parametrize("name", ["X/16", "B", "B/0x", "B-16", "", "B/16/2"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"S, B, L, H, a slash and a patch size: 'B/16'"):
        MixerConfig.from_name(name)


def test_sizes_are_kept_as_pairs_of_plain_ints():
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
def test_a_config_of_no_mixer_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        MixerConfig(**{**FIELDS, field: value})


def test_a_config_is_frozen_and_hashable():
    config = MixerConfig(**FIELDS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_blocks = 3
    assert hash(config) == hash(MixerConfig(**FIELDS))


def test_to_dict_and_back_is_the_identity():
    config = MixerConfig(**FIELDS, activation="silu", layer_norm_eps=1e-4, in_channels=2)
    assert MixerConfig.from_dict(config.to_dict()) == config


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ConfigError, match="no field depth; its fields are num_classes"):
        MixerConfig.from_dict({**FIELDS, "depth": 3})
    with pytest.raises(ConfigError, match="needs num_blocks, hidden_dim as well"):
        MixerConfig.from_dict({n: v for n, v in FIELDS.items() if n not in ("num_blocks", "hidden_dim")})


def test_fitting_image_sizes_give_the_tokens_squarest_first():
    assert fitting_image_sizes(12, (2, 3)) == [(6, 12), (8, 9), (4, 18), (12, 6), (2, 36), (24, 3)]
    assert fitting_image_sizes(7, (4, 4)) == [(4, 28), (28, 4)]


def test_resizing_keeps_the_tokens():
    config = MixerConfig(**FIELDS)
    assert config.resized((12, 8)).num_tokens == config.num_tokens
    with pytest.raises(ConfigError, match=r"does not give the 6 tokens .* sizes that do: 8x12, 12x8, 4x24, 24x4"):
        config.resized(16)
