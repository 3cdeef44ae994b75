"""Strategies draw what they promise, reproducibly, and what fails shrinks to what a person can read."""

from __future__ import annotations

import itertools
import re
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from mixer_equiv import LAYOUTS, ConfigError, Formulation, MixerConfig, convert
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.config import ACTIVATION_NAMES
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.random_weights import STYLES, draw_images, draw_params
from mixer_equiv.testing.strategies import (
    DTYPES,
    FEW_CONFIGS,
    PHASES,
    configs,
    few_configs,
    formulations,
    images,
    layouts,
    params,
)

ONES = MixerConfig(
    num_classes=1,
    num_blocks=1,
    patch_size=1,
    image_size=1,
    in_channels=1,
    hidden_dim=1,
    tokens_mlp_dim=1,
    channels_mlp_dim=1,
)
CONFIG = FEW_CONFIGS[0]
OFFICIAL_FIELDS = {"activation": "gelu_tanh", "layer_norm_eps": 1e-6}
QUIET = settings(database=None, max_examples=2000, deadline=None, derandomize=True)


# Shrinking


def test_configs_shrink_to_one_block_of_ones() -> None:
    assert find(configs(), lambda config: True, settings=QUIET) == ONES


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 3},
        {"hidden_dim": 5, "channels_mlp_dim": 2},
        {"patch_size": (1, 2), "image_size": (1, 4)},
        {"in_channels": 4, "num_classes": 2, "activation": "silu"},
        {"layer_norm_eps": 1e-3},
    ],
    ids=str,
)
def test_a_config_shrinks_to_what_matters(changes: dict[str, Any]) -> None:
    wanted = ONES.replace(**{"image_size": changes.get("patch_size", 1), **changes})

    def matters(config: MixerConfig) -> bool:
        for name in changes:
            ours, least = getattr(config, name), getattr(wanted, name)
            if isinstance(least, str | float):
                if ours != least:
                    return False
            elif not np.all(np.asarray(ours) >= np.asarray(least)):
                return False
        return True

    found = find(configs(), matters, settings=QUIET)
    assert found == wanted


@pytest.mark.parametrize("formulation", [Formulation(), Formulation(channels="conv1d"), Formulation(tokens="matmul")])
def test_a_formulation_shrinks_to_the_official_one_but_for_what_matters(formulation: Formulation) -> None:
    special = {name: value for name, value in vars(formulation).items() if value not in ("conv", "linear")}
    assert find(formulations(), lambda f: vars(f).items() >= special.items(), settings=QUIET) == formulation


def test_a_failing_example_is_printed_as_the_calls_that_make_it_again() -> None:
    @given(data=st.data())
    @settings(QUIET, max_examples=50, phases=[Phase.generate, Phase.shrink])
    def fails(data: st.DataObject) -> None:
        config = data.draw(configs())
        weights, batch = data.draw(params(config, style="sparse")), data.draw(images(config, count=40))
        assert config.hidden_dim < 2, (weights, batch)

    with pytest.raises(AssertionError) as caught:
        fails()
    printed = re.split(r"^Draw \d+: ", "\n".join(caught.value.__notes__), flags=re.MULTILINE)[1:]
    made = [eval(re.split(r"\n(?! |\))", text)[0]) for text in printed]
    assert made[0] == ONES.replace(hidden_dim=2)
    assert not bit_differences(made[1], draw_params(made[0], 0, "sparse"))
    assert np.array_equal(made[2], draw_images(made[0], 0, count=40))


SHRUNK = {
    "everywhere": (lambda config: False, 20),
    "of oblong patches in two blocks": (lambda c: c.patch_hw[0] == c.patch_hw[1] or c.num_blocks < 2, 60),
}


@pytest.mark.parametrize("fault", SHRUNK)
@pytest.mark.parametrize("seed", range(3))
def test_a_failing_config_is_found_and_shrunk_in_few_examples(fault: str, seed: int) -> None:
    passes, most = SHRUNK[fault]
    tried = set()

    @hypothesis.seed(seed)
    @settings(database=None, deadline=None, max_examples=20, phases=PHASES)
    @given(configs(min_dim=3, max_blocks=2))
    def fails(config: MixerConfig) -> None:
        tried.add(config)
        assert passes(config)

    with pytest.raises(AssertionError):
        fails()
    assert len(tried) <= most


def test_failures_are_not_explained_which_would_trace_every_line() -> None:
    assert set(Phase) - set(PHASES) == {Phase.explain}


# What is drawn


@given(config=configs(max_blocks=4, max_dim=9, min_hidden_dim=3))
def test_configs_keep_their_bounds(config: MixerConfig) -> None:
    assert 1 <= config.num_blocks <= 4
    assert 3 <= config.hidden_dim <= 9
    assert max(config.tokens_mlp_dim, config.channels_mlp_dim, config.num_classes) <= 9
    assert 1 <= config.in_channels <= 5


def test_every_kind_of_config_is_drawn() -> None:
    seen = drawn(configs(allow_headless=True))
    for kind in (
        lambda c: c.num_classes == 0,
        lambda c: c.num_classes > 0,
        lambda c: c.image_hw[0] != c.image_hw[1] and c.patch_hw[0] != c.patch_hw[1],
        lambda c: c.in_channels == 5,
        lambda c: c.num_blocks >= 11,
        *((lambda c, activation=activation: c.activation == activation) for activation in ACTIVATION_NAMES),
    ):
        assert any(map(kind, seen))


def test_without_a_head_are_only_those_that_were_asked_for() -> None:
    assert all(config.num_classes for config in drawn(configs()) | drawn(few_configs()))
    assert {config.num_classes for config in drawn(configs(num_classes=0))} == {0}


def test_fields_of_the_few_configs_can_be_changed() -> None:
    official = drawn(few_configs(**OFFICIAL_FIELDS))
    assert official == {config.replace(**OFFICIAL_FIELDS) for config in FEW_CONFIGS if config.num_classes}


def test_the_few_configs_have_no_two_sizes_alike() -> None:
    assert drawn(few_configs(allow_headless=True)) == set(FEW_CONFIGS)
    for config in FEW_CONFIGS:
        named = ("tokens", "hidden", "tokens_mlp", "channels_mlp", "classes")
        sizes = [config.axis_sizes[axis] for axis in named]
        assert len(set(sizes)) == len(sizes), config
        assert config.image_hw[0] != config.image_hw[1]
    assert {config.in_channels for config in FEW_CONFIGS} == {1, 2, 3, 4, 5}
    assert {config.activation for config in FEW_CONFIGS} == set(ACTIVATION_NAMES)
    assert min(config.num_classes for config in FEW_CONFIGS) == 0


def test_formulations_and_layouts_are_all_drawn() -> None:
    assert drawn(formulations()) == set(FORMULATIONS)
    assert drawn(layouts().map(lambda layout: layout.name)) == set(LAYOUTS)


def drawn(strategy: st.SearchStrategy[Any]) -> set[Any]:
    """What a strategy draws in 300 examples."""
    seen = set()

    @given(value=strategy)
    @settings(QUIET, max_examples=300)
    def draw(value: Any) -> None:
        seen.add(value)

    draw()
    return seen


@given(formulation=formulations(tokens="matmul"), layout=layouts(writable=True))
def test_what_is_asked_for_is_kept(formulation: Formulation, layout: Any) -> None:
    assert formulation.tokens == "matmul"
    assert not layout.read_only


@pytest.mark.parametrize("style", STYLES)
@given(
    data=st.data(),
    config=configs(max_blocks=2, layer_norm_eps=1e-6, activation="gelu_tanh"),
    dtype=st.sampled_from(DTYPES),
)
def test_weights_and_images_fit_their_config(style: str, data: st.DataObject, config: MixerConfig, dtype: str) -> None:
    dtype = draw_params(config, 0, style, dtype)["stem/bias"].dtype
    weights = data.draw(params(config, style=style, dtype=dtype))
    assert {array.dtype for array in weights.values()} == {dtype}
    convert(weights, to="torch", config=config)  # strict: every name and shape
    batch = data.draw(images(config, style=style, count=2, dtype=dtype))
    assert batch.shape == (2, *config.image_hw, config.in_channels)
    assert batch.dtype == dtype


# Styles


def of(style: str, seeds: int = 30) -> list[dict[str, np.ndarray]]:
    return [draw_params(CONFIG, seed, style) for seed in range(seeds)]


def test_normal_weights_have_the_spread_of_trained_ones() -> None:
    for name in ("head/kernel", "MixerBlock_1/token_mixing/Dense_0/kernel"):
        drawn = np.stack([weights[name] for weights in of("normal", 300)])
        assert abs(drawn.std() * np.sqrt(drawn.shape[1]) - 1) < 0.02
        assert abs(drawn.mean()) < 0.01
    scales = np.stack([weights["pre_head_layer_norm/scale"] for weights in of("normal", 300)])
    assert abs(scales.mean() - 1) < 0.02
    assert abs(scales.std() - 0.25) < 0.02


@pytest.mark.parametrize("style", ["normal", "heavy_tailed", "large_mean"])
def test_nothing_is_at_its_initial_value(style: str) -> None:
    for weights in of(style, 3):
        assert all(np.all(array != 0) and np.all(array != 1) for array in weights.values())


def test_heavy_tails_go_where_normal_ones_never_do() -> None:
    name = "MixerBlock_0/channel_mixing/Dense_0/kernel"
    normal, heavy = (
        [np.abs(weights[name]).max() * np.sqrt(CONFIG.hidden_dim) for weights in of(style)]
        for style in ("normal", "heavy_tailed")
    )
    assert max(normal) < 6 < 10 < np.median(heavy)


def test_half_of_sparse_weights_are_zero() -> None:
    for array in itertools.chain.from_iterable(weights.values() for weights in of("sparse")):
        assert np.sum(array == 0) == array.size // 2


def test_large_means_are_far_larger_than_the_spread() -> None:
    for seed, weights in enumerate(of("large_mean")):
        bias = weights["stem/bias"]
        assert 90 < abs(bias.mean()) / bias.std() / 4 < 2000
        assert 90 < draw_images(CONFIG, seed, "large_mean").mean() < 310


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_are_all_there(dtype: str) -> None:
    array = np.concatenate([array.reshape(-1) for array in draw_params(CONFIG, 0, "special", dtype).values()])
    with np.errstate(invalid="ignore"):
        wide = array.astype(np.float64)
    zero, nan = array[wide == 0], array[np.isnan(wide)]
    assert {bytes(z.tobytes()) for z in zero} == {bytes(z.tobytes()) for z in np.array([0.0, -0.0]).astype(array.dtype)}
    assert len({x.tobytes() for x in nan}) > 3  # payloads and signs
    assert {np.inf, -np.inf} <= set(wide[np.isinf(wide)])
    small = np.abs(array[(wide != 0) & np.isfinite(wide)]).min()
    assert small.astype(np.float64) == np.array(1, f"u{array.itemsize}").view(array.dtype).astype(np.float64)


@pytest.mark.parametrize("draw", [draw_params, lambda *args: {"": draw_images(*args)}], ids=["weights", "images"])
@pytest.mark.parametrize("style", STYLES)
def test_a_seed_gives_the_same_bits_and_another_one_others(draw: Any, style: str) -> None:
    assert not bit_differences(draw(CONFIG, 3, style), draw(CONFIG, 3, style))
    assert bit_differences(draw(CONFIG, 3, style), draw(CONFIG, 4, style))


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="style is 'spiky'; it must be one of normal, heavy_tailed, sparse"):
        draw_params(CONFIG, 0, "spiky")


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: configs(image_size=(1, 1), min_dim=3),
            "min_dim is 3, which .* at most 1",
        ),
        (lambda: configs(min_dim=17, max_dim=20), "there are at most 16"),
        (lambda: configs(patch_size=2, image_size=(4, 2), min_dim=3), "there are at most 2"),
        (lambda: configs(hidden_dim=2, min_hidden_dim=3), "hidden_dim is 2, which is less than min_hidden_dim, 3"),
        (lambda: configs(hidden_dim="x", min_hidden_dim=3), "hidden_dim is 'x'; it must be a whole number"),
        (lambda: configs(image_size="x"), "image_size is 'x'; it must be an int or a"),
        (lambda: configs(patch_size=0), "patch_size is 0; it must be a whole number"),
        (lambda: configs(patch_size=3, image_size=4), "image_size 4x4 is not divisible"),
        (lambda: configs(min_dim=8), "min_dim is 8, which is more than max_dim, 7"),
        (lambda: configs(min_dim=2.5), "min_dim is 2.5; it must be a whole number of at least 1"),
        (lambda: configs(max_blocks=0), "max_blocks is 0; it must be a whole number of at least 1"),
        (lambda: configs(depth=3), "a MixerConfig has no depth"),
        (lambda: few_configs(depth=3), "a MixerConfig has no depth"),
        (lambda: few_configs(image_size=4), "image_size 4x4 is not divisible"),
        (lambda: params(configs()), r"params takes a MixerConfig, and found a \w+; draw one first, by data.draw"),
        (lambda: images(None), "images takes a MixerConfig, and found a NoneType"),
        (lambda: params(CONFIG, dtype="int8"), "dtype is int8; it must be one of float16, bfloat16, float32, float64"),
        (lambda: params(CONFIG, dtype="strange"), "dtype is strange; it must be"),
        (lambda: images(CONFIG, style="odd"), "style is 'odd'; it must be one of normal"),
        (lambda: images(CONFIG, count=-1), "count is -1; it must be a whole number of at least 0"),
        (lambda: images(CONFIG, count=2.5), "count is 2.5"),
    ],
)
def test_what_fits_nothing_is_refused_at_once(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("least", [13, 16])
def test_grids_of_enough_tokens_alone_are_drawn(least: int) -> None:
    @settings(QUIET, max_examples=50)
    @given(configs(min_dim=least, max_dim=16))
    def enough(config: MixerConfig) -> None:
        assert config.num_tokens >= least

    enough()


def test_a_formulation_has_no_other_fields() -> None:
    with pytest.raises(ConfigError, match="a Formulation has no token; it has patch, tokens, channels"):
        formulations(token="conv1d")


@pytest.mark.parametrize(
    ("fields", "patch", "image"),
    [
        ({"image_size": (6, 5)}, (3, 5), (6, 5)),
        ({"image_size": (6, 5)}, (6, 1), (6, 5)),
        ({"patch_size": (3, 2)}, (3, 2), (3, 8)),
        ({"patch_size": (3, 2), "image_size": (3, 8)}, (3, 2), (3, 8)),
    ],
    ids=str,
)
def test_each_side_is_as_open_as_its_own_fields_leave_it(
    fields: dict[str, Any], patch: tuple[int, int], image: tuple[int, int]
) -> None:
    found = find(configs(**fields), lambda config: (config.patch_hw, config.image_hw) == (patch, image), settings=QUIET)
    assert (found.patch_hw, found.image_hw) == (patch, image)


def test_sizes_may_be_numbers_of_numpy() -> None:
    config = find(configs(image_size=np.int64(4), patch_size=(np.int64(2), 1)), lambda config: True, settings=QUIET)
    assert (config.image_size, config.patch_size) == ((4, 4), (2, 1))
    assert len(find(images(ONES, count=np.int64(2)), lambda batch: True, settings=QUIET)) == 2


@pytest.mark.parametrize(
    ("dtype", "name"), [(float, "float64"), ("f4", "float32"), (np.dtype("float16"), "float16"), (None, "float64")]
)
def test_a_dtype_may_be_written_as_numpy_takes_it(dtype: Any, name: str) -> None:
    assert find(images(ONES, dtype=dtype), lambda batch: True, settings=QUIET).dtype == name


def test_layouts_are_printed_by_their_names() -> None:
    @settings(database=None, derandomize=True, max_examples=1)
    @given(layouts())
    def fails(layout: Any) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        fails()
    assert "get_layout('jankrepl')" in re.sub(r"\s|,(?=\s*\))", "", "".join(caught.value.__notes__))
