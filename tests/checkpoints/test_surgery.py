"""Another head, and images K times as large: the law of the paper's rule, held in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    ConfigError,
    ConversionError,
    LayoutError,
    MixerConfig,
    convert,
    drop_head,
    enlarge,
    load,
    new_head,
    save,
)
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints import formats, surgery
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_images, random_params
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from mixer_equiv.testing import strategies
from mixer_equiv.testing.strategies import DTYPES, configs
from tests.support.checkpoints import WRITABLE
from tests.support.structures import LucidrainsMixer, as_official, run_official, run_torch, timm_mixer

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG


def checkpoint(layout: Any = "linen", config: MixerConfig = CONFIG, dtype: Any = "float64", stated: Any = True) -> Any:
    params = {name: array.astype(dtype) for name, array in random_params(config, 0).items()}
    arrays = relabel(params, LINEN, LAYOUTS[layout], config)
    return Checkpoint.from_arrays(arrays, layout=layout, config=config if stated else None)


def sub_images(images: Any, factor: Any) -> Any:
    """The K^2 contiguous parts of (batch, height, width, channels), each again such a batch."""
    rows = np.split(images, factor, axis=1)
    return [part for row in rows for part in np.split(row, factor, axis=2)]


def mean_of_parts(run: Any, config: MixerConfig, params: Any, images: Any, factor: Any) -> Any:
    return np.mean([run(config, params, part) for part in sub_images(images, factor)], axis=0)


def run_reference(config: MixerConfig, params: Any, images: Any) -> Any:
    return ReferenceMixer(config)(params, images)


# Larger images


def law_residual(config: MixerConfig, factor: Any, widened: Any = enlarge) -> Any:
    """How far the widened model is from the mean over sub-images, on random weights and images."""
    params = random_params(config, 1)
    large = widened(Checkpoint.from_arrays(params, config=config), tuple(factor * side for side in config.image_hw))
    images = random_images(large.config, 2)
    expected = mean_of_parts(run_reference, config, params, images, factor)
    return residual(run_reference(large.config, large.arrays, images), expected)


@given(config=configs(max_blocks=3, allow_headless=True), factor=st.integers(1, 3))
def test_logits_of_the_widened_model_are_the_mean_over_its_sub_images(config: MixerConfig, factor: Any) -> None:
    assert law_residual(config, factor) <= 1e-12


@pytest.mark.parametrize("factor", [2, 3])
def test_the_law_holds_in_the_official_flax_model(factor: Any) -> None:
    params = random_params(CONFIG, 1)
    large = enlarge(Checkpoint.from_arrays(params, config=CONFIG), (8 * factor, 9 * factor))
    images = random_images(large.config, 2)
    expected = mean_of_parts(run_official, CONFIG, params, images, factor)
    assert residual(run_official(large.config, dict(large.arrays), images), expected) <= 1e-12


@pytest.mark.parametrize(("layout", "structure"), [("timm", timm_mixer), ("lucidrains", LucidrainsMixer)])
def test_the_law_holds_in_the_structure_of_a_port(layout: Any, structure: Any) -> None:
    def run(config: MixerConfig, state: Any, images: Any) -> Any:
        model = as_official(structure(config)).double()
        model.load_state_dict(dict(state), strict=True)
        return run_torch(model, images)

    small = checkpoint(layout)
    large = enlarge(small, (16, 18))
    images = random_images(large.config, 2)
    assert residual(run(large.config, large, images), mean_of_parts(run, CONFIG, small, images, 2)) <= 1e-12


def _transposed_grid(kernel: Any, grid: Any, factor: Any) -> Any:
    return surgery._widen_in(kernel, grid[::-1], factor)


def _tiled(kernel: Any, grid: Any, factor: Any) -> Any:
    return np.tile(kernel, (factor**2, factor**2))


def _contiguous_tokens(kernel: Any, grid: Any, factor: Any) -> Any:
    return np.kron(np.eye(factor**2), kernel)


def _column_major_sub_images(kernel: Any, grid: Any, factor: Any) -> Any:
    return rearrange(surgery._widen_in(kernel, grid, factor), "t (a b m) -> t (b a m)", a=factor, b=factor)


@pytest.mark.parametrize("wrong", [_transposed_grid, _tiled, _contiguous_tokens, _column_major_sub_images])
def test_a_wrong_rule_breaks_the_law(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """The planted fault."""
    monkeypatch.setitem(surgery._WIDEN, "Dense_0/kernel", wrong)
    assert law_residual(CONFIG, 2) > 1e-3


def test_a_rule_that_is_wrong_throughout_breaks_the_law_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks for runs of tokens, as if a sub-image's tokens were beside each other in the order of the large image."""
    monkeypatch.setitem(surgery._WIDEN, "Dense_0/kernel", _contiguous_tokens)
    monkeypatch.setitem(surgery._WIDEN, "Dense_1/kernel", _contiguous_tokens)
    monkeypatch.setitem(surgery._WIDEN, "Dense_1/bias", lambda bias, grid, factor: np.tile(bias, factor**2))
    assert law_residual(CONFIG, 2) > 1e-3


def widened_by_number(params: Any, config: MixerConfig, factor: Any) -> Any:
    """The same from the numbers of each sub-image's tokens and hidden units, with no reshaping of weights."""
    tokens = np.arange(config.num_tokens * factor**2).reshape(1, config.grid_hw[0] * factor, -1, 1)
    units = np.split(np.arange(config.tokens_mlp_dim * factor**2), factor**2)
    result = dict(params)
    for name, array in params.items():
        if "/token_mixing/" not in name:
            continue
        result[name] = np.zeros([size * factor**2 for size in array.shape], array.dtype)
        for part, own in zip(sub_images(tokens, factor), units, strict=True):
            axes = {"Dense_0": (part.ravel(), own), "Dense_1": (own, part.ravel())}[name.split("/")[2]]
            result[name][np.ix_(*axes[-array.ndim :])] = array
    return result


@given(
    data=st.data(),
    config=configs(max_blocks=2, allow_headless=True),
    factor=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_widening_keeps_every_bit_and_adds_positive_zeros_only(
    data: Any, config: MixerConfig, factor: Any, dtype: Any
) -> None:
    params = data.draw(strategies.params(config, style="special", dtype=dtype))
    found = enlarge(Checkpoint.from_arrays(params, config=config), tuple(factor * side for side in config.image_hw))
    assert not bit_differences(found.arrays, widened_by_number(params, config, factor))


def test_widening_twice_is_widening_at_once() -> None:
    once, twice = enlarge(checkpoint(), (48, 54)), enlarge(enlarge(checkpoint(), (16, 18)), (48, 54))
    assert once.config == twice.config
    images = random_images(once.config, 3)[:2]
    assert residual(*(run_reference(once.config, c.arrays, images) for c in (twice, once))) <= 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_read_only_layouts_are_widened_too_and_lazy_ones_as_others(tmp_path: Path, layout: Any) -> None:
    expected = convert(enlarge(checkpoint(), (16, 18)), to="linen")
    assert not bit_differences(convert(enlarge(checkpoint(layout), (16, 18)), to="linen").arrays, expected.arrays)
    if layout in WRITABLE:
        save(checkpoint(layout), tmp_path / "mixer.safetensors")
        found = enlarge(load(tmp_path / "mixer.safetensors", lazy=True), (16, 18))
        assert not bit_differences(convert(found, to="linen").arrays, expected.arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_commutes_with_widening_and_with_a_new_head(dtype: Any) -> None:
    for change in (lambda c: enlarge(c, (16, 18)), lambda c: new_head(c, 3), drop_head):
        assert not bit_differences(change(checkpoint().astype(dtype)).arrays, change(checkpoint()).astype(dtype).arrays)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".msgpack"])
def test_widened_weights_come_back_from_a_file_with_their_size(tmp_path: Path, suffix: str) -> None:
    large = enlarge(checkpoint("timm", stated=False), (16, 18))
    found = load(save(large, tmp_path / f"large{suffix}"))
    assert not bit_differences(found.arrays, large.arrays)
    assert (found.config, found.image_size_is_assumed) == (large.config, False)


def test_the_bias_that_no_logits_show_stands_with_its_tokens() -> None:
    name = "MixerBlock_5/token_mixing/Dense_1/bias"
    grid = random_params(CONFIG, 0)[name].reshape(4, 3)
    assert np.array_equal(enlarge(checkpoint(), (16, 18)).arrays[name].reshape(8, 6), np.tile(grid, (2, 2)))


def test_sub_images_are_not_connected_and_each_has_the_weights_as_they_were() -> None:
    name = "MixerBlock_5/token_mixing/Dense_0/kernel"
    kernel = random_params(CONFIG, 0)[name]
    large = enlarge(checkpoint(), (16, 18)).arrays[name].reshape(2, 4, 2, 3, 2, 2, 11)
    for a, b, c, d in np.ndindex(2, 2, 2, 2):
        expected = kernel if (a, b) == (c, d) else np.zeros_like(kernel)
        assert np.array_equal(large[a, :, b, :, c, d].reshape(12, 11), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
def test_widening_commutes_with_conversion_bit_for_bit(layout: Any, dtype: Any) -> None:
    expected = convert(enlarge(checkpoint(dtype=dtype), (16, 18)), to=layout)
    found = enlarge(checkpoint(layout, dtype=dtype), (16, 18))
    assert not bit_differences(found.arrays, expected.arrays)
    assert found.dtypes == (dtype,)
    assert found.config.image_hw == (16, 18)


def test_a_size_that_is_no_whole_number_of_times_the_old_one_is_refused() -> None:
    for size in (15, 18), (16, 27), (16, 9), (17, 18), (4, 4), 16:
        with pytest.raises(ConfigError, match="widened to a whole number of times 8x9, and"):
            enlarge(checkpoint(), size)
    with pytest.raises(ConfigError, match="whole number of times 6x12 or 8x9 or 4x18"):
        enlarge(checkpoint(stated=False), (15, 18))


def test_an_assumed_size_gives_way_to_what_the_new_one_is_a_multiple_of() -> None:
    assumed = checkpoint(stated=False)
    assert assumed.config.image_hw == (6, 12)
    large = enlarge(assumed, (16, 18))
    assert not bit_differences(large.arrays, enlarge(checkpoint(), (16, 18)).arrays)
    assert (large.image_size_is_assumed, large.config.image_hw) == (False, (16, 18))


# The head


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
def test_a_new_head_is_zeros_and_nothing_else_changes(layout: Any, dtype: Any) -> None:
    before = checkpoint(layout, dtype=dtype)
    after = new_head(before, 9)
    head = {b.foreign: b.shape(after.config.axis_sizes) for b in LAYOUTS[layout].bindings(12).values() if b.row.in_head}
    assert {name: after.arrays[name].shape for name in head} == head
    assert all(not after.arrays[name].any() and str(after.arrays[name].dtype) == dtype for name in head)
    kept = {name: array for name, array in before.arrays.items() if name not in head}
    assert not bit_differences({name: array for name, array in after.arrays.items() if name not in head}, kept)
    assert not bit_differences(drop_head(after).arrays, kept)
    assert (after.config.num_classes, drop_head(after).config.num_classes) == (9, 0)


def test_a_new_head_loads_strictly_and_fits_weights_without_one() -> None:
    headless = drop_head(checkpoint("torch"))
    TorchMixer(headless.config).double().load_state_dict(dict(headless), strict=True)
    fresh = new_head(headless, 3)
    model = TorchMixer(fresh.config).double()
    model.load_state_dict(dict(fresh), strict=True)
    images = random_images(CONFIG, 0)
    assert run_torch(model, images).shape == (len(images), 3)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5])
def test_a_head_of_no_classes_is_refused(num_classes: Any) -> None:
    with pytest.raises(ConfigError, match="num_classes is"):
        new_head(checkpoint(), num_classes)


@pytest.mark.parametrize("change", [drop_head, lambda c: new_head(c, 3), lambda c: enlarge(c, (16, 18))])
def test_incomplete_weights_are_refused(change: Any) -> None:
    params = random_params(CONFIG, 0)
    del params["MixerBlock_3/LayerNorm_0/bias"]
    with pytest.raises(ConversionError, match="missing: MixerBlock_3/LayerNorm_0/bias"):
        change(Checkpoint.from_arrays(params, config=CONFIG))


@pytest.mark.parametrize("change", [drop_head, lambda c: new_head(c, 3), lambda c: enlarge(c, (16, 18))])
def test_what_was_given_stays_as_it_was(change: Any) -> None:
    before = checkpoint("timm")
    change(before)
    assert not bit_differences(before.arrays, checkpoint("timm").arrays)


@pytest.mark.parametrize("change", [drop_head, lambda held: new_head(held, 3), lambda held: enlarge(held, (16, 12))])
def test_arrays_by_name_are_changed_as_checkpoints_are(change: Any) -> None:
    config = CONFIG.replace(image_size=(8, 6), patch_size=(2, 3))
    state = TorchMixer(config).state_dict()
    ours, theirs = change(Checkpoint.from_arrays(state)), change(state)
    assert not bit_differences(ours.arrays, theirs.arrays)
    assert ours.config == theirs.config


def test_a_new_head_has_the_dtype_of_the_norm_before_it() -> None:
    params = random_params(CONFIG, 0)
    params["pre_head_layer_norm/scale"] = params["pre_head_layer_norm/scale"].astype(np.float32)
    head = new_head(Checkpoint.from_arrays(params, config=CONFIG), 3).arrays
    assert head["head/kernel"].dtype == head["head/bias"].dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, None, "float12"], ids=str)
def test_what_is_no_dtype_of_a_parameter_is_refused(dtype: Any) -> None:
    with pytest.raises(ConversionError, match="it must be one of float16, bfloat16, float32, float64"):
        checkpoint().astype(dtype)


# Names on their way into a file


def names_and_bits(path: Any) -> Any:
    return {name: np.asarray(array) for name, array in flatten(formats.read(path).arrays)}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_the_longest_prefix_is_renamed_once_and_every_bit_kept(tmp_path: Path, suffix: str) -> None:
    given = checkpoint("timm", dtype="float32")
    prefixes = {"": "backbone.", "head.": "fc.", "blocks.1": "blocks.x", "blocks.1.": "blocks."}
    save(given, tmp_path / f"renamed{suffix}", rename_prefix=prefixes)
    begins = {"head.": "fc.", "blocks.1.": "blocks.", "blocks.10.": "blocks.x0.", "blocks.11.": "blocks.x1."}
    expected = {}
    for name, array in given.arrays.items():
        old = next((old for old in begins if name.startswith(old)), "")
        expected[begins.get(old, "backbone.") + name.removeprefix(old)] = array
    assert len(expected) == 150
    assert not bit_differences(names_and_bits(tmp_path / f"renamed{suffix}"), expected)
    assert not bit_differences(given.arrays, checkpoint("timm", dtype="float32").arrays)


@pytest.mark.parametrize("layout", WRITABLE)
def test_a_prefix_put_before_all_names_is_stripped_again(tmp_path: Path, layout: Any) -> None:
    prefix = "model/" if LAYOUTS[layout].framework == "flax" else "module."
    found = load(save(checkpoint(layout), tmp_path / "mixer.safetensors", rename_prefix={"": prefix}))
    assert not bit_differences(found.arrays, checkpoint(layout).arrays)
    assert f"the prefix {prefix!r} was stripped from every name" in found.notes


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ({"haed.": "fc."}, "rename_prefix 'haed.': no name begins so; they begin as stem.proj.weight"),
        ({"norm.weight": ""}, "rename_prefix leaves an empty name of norm.weight"),
        ({"": "/"}, "rename_prefix leaves an empty name of stem.proj.weight"),
        ({"norm.": "head."}, "rename_prefix makes several names the same: head.weight, head.bias"),
    ],
)
def test_prefixes_that_cannot_be_renamed_are_refused_and_nothing_is_written(
    tmp_path: Path, prefixes: Any, message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        save(checkpoint("timm"), tmp_path / "mixer.npz", rename_prefix=prefixes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".msgpack", ".orbax"])
def test_a_name_that_would_lie_below_another_is_refused_and_nothing_is_written(tmp_path: Path, suffix: str) -> None:
    """head and head/bias: a file that nests names has one array or the other there."""
    with pytest.raises(ConversionError, match="rename_prefix"):
        save(checkpoint(), tmp_path / f"mixer{suffix}", rename_prefix={"head/kernel": "head"})
    assert not list(tmp_path.iterdir())


# Sets of weights beside each other


def state(seed: int) -> Any:
    """Weights in the torch layout, as tensors."""
    arrays = relabel(random_params(CONFIG, seed), LINEN, LAYOUTS["torch"], CONFIG)
    return {name: torch.tensor(array) for name, array in arrays.items()}


def as_arrays(tensors: Any) -> Any:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


MOMENTS = {"optimizer": {"exp_avg": state(2), "exp_avg_sq": state(3)}}


def saved(path: Any, *sets: Any) -> Any:
    contents = {name: tensors for one in sets for name, tensors in one.items()}
    torch.save(contents, path)
    return path


@pytest.mark.parametrize("moments_first", [False, True])
def test_moments_beside_the_weights_are_never_chosen(tmp_path: Path, moments_first: Any) -> None:
    sets = [{"model": state(0)}, MOMENTS]
    path = saved(tmp_path / "trained.pt", *sets[:: -1 if moments_first else 1])
    assert not bit_differences(load(path).arrays, as_arrays(state(0)))


@pytest.mark.parametrize(("prefix", "seed"), [("model", 0), ("model/", 0), ("ema", 1), ("ema/", 1)])
def test_of_two_sets_beside_moments_the_prefix_takes_one(tmp_path: Path, prefix: str, seed: int) -> None:
    path = saved(tmp_path / "trained.pt", {"model": state(0)}, {"ema": state(1)}, MOMENTS)
    with pytest.raises(LayoutError, match="two sets of Mixer weights are here, under 'model/' and 'ema/'"):
        load(path)
    assert not bit_differences(load(path, prefix=prefix).arrays, as_arrays(state(seed)))


def test_moments_are_not_chosen_over_weights_that_lack_an_array(tmp_path: Path) -> None:
    incomplete = state(0)
    del incomplete["blocks.3.layer_norm_0.weight"]
    path = saved(tmp_path / "trained.pt", {"model": incomplete}, {"optimizer": {"exp_avg": state(2)}})
    with pytest.raises(ConversionError, match=r"missing: blocks\.3\.layer_norm_0\.weight"):
        convert(load(path), to="linen")


def test_moments_are_not_chosen_over_weights_without_a_head(tmp_path: Path) -> None:
    headless = {name: tensor for name, tensor in state(0).items() if not name.startswith("head")}
    path = saved(tmp_path / "trained.pt", {"model": headless}, {"optimizer": {"exp_avg": state(2)}})
    assert not bit_differences(load(path).arrays, as_arrays(headless))
