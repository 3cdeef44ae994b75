"""Another head, and images K times as large: the law of the paper's rule, held in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_equiv import (
    LAYOUTS,
    Checkpoint,
    ConfigError,
    ConversionError,
    convert,
    drop_head,
    enlarge,
    new_head,
    surgery,
)
from mixer_equiv.convert import relabel
from mixer_equiv.equivalence.compare import differing, residual
from mixer_equiv.equivalence.subject import DEFAULT_CONFIG
from mixer_equiv.equivalence.weights import random_images, random_params
from mixer_equiv.layouts import LINEN
from mixer_equiv.models.reference import MlpMixer as ReferenceMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer
from mixer_equiv.strategies import DTYPES, configs
from tests.structures import LucidrainsMixer, as_official, run_official, run_torch, timm_mixer

pytestmark = pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")

CONFIG = DEFAULT_CONFIG
WRITABLE = [name for name, layout in LAYOUTS.items() if not layout.read_only]


def checkpoint(layout="linen", config=CONFIG, dtype="float64", stated=True):
    params = {name: array.astype(dtype) for name, array in random_params(config, 0).items()}
    arrays = relabel(params, LINEN, LAYOUTS[layout], config)
    return Checkpoint.from_arrays(arrays, layout=layout, config=config if stated else None)


def sub_images(images, factor):
    """The K^2 contiguous parts of (batch, height, width, channels), each again such a batch."""
    rows = np.split(images, factor, axis=1)
    return [part for row in rows for part in np.split(row, factor, axis=2)]


def mean_of_parts(run, config, params, images, factor):
    return np.mean([run(config, params, part) for part in sub_images(images, factor)], axis=0)


def run_reference(config, params, images):
    return ReferenceMixer(config)(params, images)


# Larger images


def law_residual(config, factor, widened=enlarge):
    """How far the widened model is from the mean over sub-images, on random weights and images."""
    params = random_params(config, 1)
    large = widened(Checkpoint.from_arrays(params, config=config), tuple(factor * side for side in config.image_hw))
    images = random_images(large.config, 2)
    expected = mean_of_parts(run_reference, config, params, images, factor)
    return residual(run_reference(large.config, large.arrays, images), expected)


@given(config=configs(max_blocks=3), factor=st.integers(1, 3))
def test_logits_of_the_widened_model_are_the_mean_over_its_sub_images(config, factor):
    assert law_residual(config, factor) <= 1e-12


@pytest.mark.parametrize("factor", [2, 3])
def test_the_law_holds_in_the_official_flax_model(factor):
    params = random_params(CONFIG, 1)
    large = enlarge(Checkpoint.from_arrays(params, config=CONFIG), (8 * factor, 9 * factor))
    images = random_images(large.config, 2)
    expected = mean_of_parts(run_official, CONFIG, params, images, factor)
    assert residual(run_official(large.config, dict(large.arrays), images), expected) <= 1e-12


@pytest.mark.parametrize(("layout", "structure"), [("timm", timm_mixer), ("lucidrains", LucidrainsMixer)])
def test_the_law_holds_in_the_structure_of_a_port(layout, structure):
    def run(config, state, images):
        model = as_official(structure(config)).double()
        model.load_state_dict(dict(state), strict=True)
        return run_torch(model, images)

    small = checkpoint(layout)
    large = enlarge(small, (16, 18))
    images = random_images(large.config, 2)
    assert residual(run(large.config, large, images), mean_of_parts(run, CONFIG, small, images, 2)) <= 1e-12


def _transposed_grid(kernel, grid, factor):
    return surgery._widen_in(kernel, grid[::-1], factor)


def _tiled(kernel, grid, factor):
    return np.tile(kernel, (factor**2, factor**2))


@pytest.mark.parametrize("wrong", [_transposed_grid, _tiled])
def test_a_wrong_rule_breaks_the_law(monkeypatch, wrong):
    """The planted fault."""
    monkeypatch.setitem(surgery._WIDENED, "Dense_0/kernel", wrong)
    assert law_residual(CONFIG, 2) > 1e-3


def test_the_bias_that_no_logits_show_stands_with_its_tokens():
    name = "MixerBlock_5/token_mixing/Dense_1/bias"
    grid = random_params(CONFIG, 0)[name].reshape(4, 3)
    assert np.array_equal(enlarge(checkpoint(), (16, 18)).arrays[name].reshape(8, 6), np.tile(grid, (2, 2)))


def test_sub_images_are_not_connected_and_each_has_the_weights_as_they_were():
    name = "MixerBlock_5/token_mixing/Dense_0/kernel"
    kernel = random_params(CONFIG, 0)[name]
    large = enlarge(checkpoint(), (16, 18)).arrays[name].reshape(2, 4, 2, 3, 2, 2, 11)
    for a, b, c, d in np.ndindex(2, 2, 2, 2):
        expected = kernel if (a, b) == (c, d) else np.zeros_like(kernel)
        assert np.array_equal(large[a, :, b, :, c, d].reshape(12, 11), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
def test_widening_commutes_with_conversion_bit_for_bit(layout, dtype):
    expected = convert(enlarge(checkpoint(dtype=dtype), (16, 18)), to=layout)
    found = enlarge(checkpoint(layout, dtype=dtype), (16, 18))
    assert not differing(found.arrays, expected.arrays)
    assert found.dtypes == (dtype,)
    assert found.config.image_hw == (16, 18)


def test_a_size_that_is_no_whole_number_of_times_the_old_one_is_refused():
    for size in (15, 18), (16, 27), (4, 4), 16:
        with pytest.raises(ConfigError, match="widened to a whole number of times 8x9, and"):
            enlarge(checkpoint(), size)
    with pytest.raises(ConfigError, match="whole number of times 6x12 or 8x9 or 4x18"):
        enlarge(checkpoint(stated=False), (15, 18))


def test_an_assumed_size_gives_way_to_what_the_new_one_is_a_multiple_of():
    assumed = checkpoint(stated=False)
    assert assumed.config.image_hw == (6, 12)
    large = enlarge(assumed, (16, 18))
    assert not differing(large.arrays, enlarge(checkpoint(), (16, 18)).arrays)
    assert (large.image_size_is_assumed, large.config.image_hw) == (False, (16, 18))


# The head


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
def test_a_new_head_is_zeros_and_nothing_else_changes(layout, dtype):
    before = checkpoint(layout, dtype=dtype)
    after = new_head(before, 9)
    head = {b.foreign: b.shape(after.config.axis_sizes) for b in LAYOUTS[layout].bindings(12).values() if b.row.in_head}
    assert {name: after.arrays[name].shape for name in head} == head
    assert all(not after.arrays[name].any() and str(after.arrays[name].dtype) == dtype for name in head)
    kept = {name: array for name, array in before.arrays.items() if name not in head}
    assert not differing({name: array for name, array in after.arrays.items() if name not in head}, kept)
    assert not differing(drop_head(after).arrays, kept)
    assert (after.config.num_classes, drop_head(after).config.num_classes) == (9, 0)


def test_a_new_head_loads_strictly_and_fits_weights_without_one():
    headless = drop_head(checkpoint("torch"))
    TorchMixer(headless.config).double().load_state_dict(dict(headless), strict=True)
    fresh = new_head(headless, 3)
    model = TorchMixer(fresh.config).double()
    model.load_state_dict(dict(fresh), strict=True)
    images = random_images(CONFIG, 0)
    assert run_torch(model, images).shape == (len(images), 3)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5])
def test_a_head_of_no_classes_is_refused(num_classes):
    with pytest.raises(ConfigError, match="num_classes is"):
        new_head(checkpoint(), num_classes)


@pytest.mark.parametrize("change", [drop_head, lambda c: new_head(c, 3), lambda c: enlarge(c, (16, 18))])
def test_incomplete_weights_are_refused(change):
    params = random_params(CONFIG, 0)
    del params["MixerBlock_3/LayerNorm_0/bias"]
    with pytest.raises(ConversionError, match="missing: MixerBlock_3/LayerNorm_0/bias"):
        change(Checkpoint.from_arrays(params, config=CONFIG))


@pytest.mark.parametrize("change", [drop_head, lambda c: new_head(c, 3), lambda c: enlarge(c, (16, 18))])
def test_what_was_given_stays_as_it_was(change):
    before = checkpoint("timm")
    change(before)
    assert not differing(before.arrays, checkpoint("timm").arrays)
