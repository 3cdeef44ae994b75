"""Files: what was saved comes back bit for bit with its metadata, and other programs read it."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

from mixer_equiv import Checkpoint
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS, Conventions
from mixer_equiv.models.torch import MlpMixer
from mixer_equiv.testing.strategies import DTYPES
from tests.support.checkpoints import CONFIG, WRITABLE, checkpoint, files_of, in_layout
from tests.support.files import arbitrary_bits, changed


@pytest.mark.parametrize("dtype", DTYPES)
def test_arbitrary_bits_have_specials_of_every_kind(dtype: str) -> None:
    values = np.concatenate([array.ravel() for array in arbitrary_bits(dtype).values()])
    patterns = values.view(f"u{values.itemsize}")
    with np.errstate(invalid="ignore"):
        denormal = (values != 0) & (np.abs(values) < ml_dtypes.finfo(values.dtype).smallest_normal)
        infinite, nan, zero = np.isinf(values), np.isnan(values), values == 0
    assert len(np.unique(patterns[nan])) >= 5
    assert np.any(np.signbit(values) & zero)
    assert len(np.unique(patterns[infinite])) == 2
    assert np.any(denormal)


@pytest.mark.parametrize("bit", [0, 63])
def test_one_flipped_bit_of_a_nan_is_seen(bit: int) -> None:
    before = {"x": np.array([1.5, np.nan]), "y": np.array([2.5])}
    after = {name: array.copy() for name, array in before.items()}
    after["x"].view(np.uint64)[1] ^= np.uint64(1 << bit)
    assert changed(before, before) == []
    assert changed(before, after) == ["x"]


# Round trips


# In every run each format meets each layout, and both meet each dtype; `make fuzz` adds the other combinations.
IN_EVERY_RUN = {
    (suffix, layout, DTYPES[(i + j) % len(DTYPES)])
    for (i, suffix), (j, layout) in itertools.product(enumerate(SUFFIXES), enumerate(WRITABLE))
}
COMBINATIONS = [
    pytest.param(*combination, marks=() if combination in IN_EVERY_RUN else pytest.mark.fuzz)
    for combination in itertools.product(SUFFIXES, WRITABLE, DTYPES)
]


def test_each_format_and_each_layout_meets_each_dtype_in_every_run() -> None:
    assert {(suffix, layout) for suffix, layout, _ in IN_EVERY_RUN} == set(itertools.product(SUFFIXES, WRITABLE))
    assert {(suffix, dtype) for suffix, _, dtype in IN_EVERY_RUN} == set(itertools.product(SUFFIXES, DTYPES))
    assert {(layout, dtype) for _, layout, dtype in IN_EVERY_RUN} == set(itertools.product(WRITABLE, DTYPES))


@pytest.mark.parametrize(("suffix", "layout", "dtype"), COMBINATIONS)
def test_round_trip_is_bit_exact(tmp_path: Path, suffix: str, layout: str, dtype: str) -> None:
    saved, path = in_layout(arbitrary_bits(dtype), layout), tmp_path / f"mixer{suffix}"
    save(saved, path)
    loaded = load(path)
    assert changed(saved.arrays, loaded.arrays) == []
    assert loaded.layout is LAYOUTS[layout]
    assert loaded.dtypes == (dtype,)
    assert (loaded.config, loaded.config_is_stated) == (CONFIG, True)
    assert loaded.trained_with == Conventions("quick_gelu", 1e-3, LAYOUTS[layout].computes.padding)
    assert (loaded.source, loaded.notes, loaded.image_size_is_assumed) == (str(path), (), False)
    assert sorted(os.listdir(tmp_path)) == files_of(path)


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_known_comes_back_as_not_known(tmp_path: Path, suffix: str, layout: str) -> None:
    saved, path = checkpoint(layout, config=None), tmp_path / f"mixer{suffix}"
    save(saved, path)
    loaded = load(path)
    assert loaded.trained_with == saved.trained_with == LAYOUTS[layout].trained_with
    assert loaded.config == saved.config
    assert saved.image_size_is_assumed
    assert loaded.image_size_is_assumed
    assert load(path, image_size=CONFIG.image_hw).config.image_hw == (8, 9)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_outweigh_what_the_layout_says(tmp_path: Path, suffix: str) -> None:
    trained_with = Conventions("silu", 1e-5, "same")
    saved = dataclasses.replace(checkpoint("timm", config=None), trained_with=trained_with)
    save(saved, tmp_path / f"mixer{suffix}")
    assert load(tmp_path / f"mixer{suffix}").trained_with == trained_with


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_memory_order_is_saved_as_the_same_numbers(tmp_path: Path, suffix: str) -> None:
    params = random_params(CONFIG, 0)
    orders = (np.asfortranarray, lambda a: a.astype(">f8"), lambda a: np.repeat(a, 2, axis=-1)[..., ::2])
    for i, order in enumerate(orders):
        save({name: order(array) for name, array in params.items()}, tmp_path / f"{i}{suffix}")
        assert changed(params, load(tmp_path / f"{i}{suffix}").arrays) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_leaves_the_callers_arrays_alone(tmp_path: Path, suffix: str) -> None:
    params, before = random_params(CONFIG, 0), random_params(CONFIG, 0)
    save(params, tmp_path / f"mixer{suffix}")
    assert list(params) == list(before)
    assert changed(params, before) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes_are_read_in_any_case(tmp_path: Path, suffix: str) -> None:
    save(checkpoint(), tmp_path / f"mixer{suffix.upper()}")
    assert changed(checkpoint().arrays, load(tmp_path / f"mixer{suffix.upper()}").arrays) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saved_files_have_the_permissions_of_any_new_file(tmp_path: Path, suffix: str) -> None:
    save(checkpoint(), tmp_path / f"mixer{suffix}")
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    path = tmp_path / f"mixer{suffix}"
    other = tmp_path / ("directory" if path.is_dir() else "file")
    assert oct(path.stat().st_mode) == oct(other.stat().st_mode)


# What other programs see


@pytest.mark.parametrize("layout", WRITABLE)
def test_npz_has_the_published_names_and_no_other(tmp_path: Path, layout: str) -> None:
    saved = checkpoint(layout)
    save(saved, tmp_path / "mixer.npz")
    with np.load(tmp_path / "mixer.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == sorted(saved.arrays)
        assert changed(saved.arrays, dict(arrays)) == []


def test_bfloat16_in_npz_is_two_byte_void(tmp_path: Path) -> None:
    params = arbitrary_bits("bfloat16")
    save(in_layout(params), tmp_path / "mixer.npz")
    with np.load(tmp_path / "mixer.npz", allow_pickle=False) as arrays:
        on_disk = dict(arrays)
    assert {array.dtype for array in on_disk.values()} == {np.dtype("V2")}
    assert changed(params, Checkpoint.from_arrays(on_disk, config=CONFIG).arrays) == []


@pytest.mark.parametrize(("layout", "form"), [("linen", "flax"), ("torch", "pt"), ("timm", "pt"), ("jankrepl", "pt")])
def test_safetensors_metadata_are_the_formats_own(tmp_path: Path, layout: str, form: str) -> None:
    saved = checkpoint(layout)
    save(saved, tmp_path / "mixer.safetensors")
    with safe_open(tmp_path / "mixer.safetensors", framework="pt") as tensors:
        assert tensors.metadata()["format"] == form
        assert sorted(tensors.keys()) == sorted(saved.arrays)
        assert torch.equal(tensors.get_tensor(next(iter(saved))), torch.from_numpy(saved.arrays[next(iter(saved))]))


def test_pt_is_a_state_dict_to_torch_itself(tmp_path: Path) -> None:
    save(checkpoint("torch"), tmp_path / "mixer.pt")
    loaded = torch.load(tmp_path / "mixer.pt", weights_only=True)
    model = MlpMixer(CONFIG).double()
    model.load_state_dict(loaded, strict=True)
    assert isinstance(loaded, dict)
    assert changed(checkpoint("torch").arrays, {name: t.numpy() for name, t in model.state_dict().items()}) == []
