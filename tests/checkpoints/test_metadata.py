"""Metadata in files: format versions, assumptions, and metadata that make no sense."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mixer_equiv import Checkpoint, CheckpointError, LayoutError
from mixer_equiv.checkpoints import metadata
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS, LINEN, Conventions
from tests.support.checkpoints import CONFIG, checkpoint
from tests.support.files import changed


def test_an_assumption_is_stated_again_after_saving(tmp_path: Path) -> None:
    params = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
    np.savez(tmp_path / "a.npz", **params)
    first = load(tmp_path / "a.npz")
    save(first, tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors")
    assert first.notes == again.notes == ("12 tokens are taken as 3x4, an image of 6x12",)
    assert again.image_size_is_assumed
    assert load(tmp_path / "b.safetensors", image_size=(8, 9)).notes == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"trained_with": {"layer_norm_eps": "1e-6"}},
        {"trained_with": {"activation": "mish"}},
        {"trained_with": {"depth": 3}},
        {"config": {"num_blocks": 12}},
        {"config": {"num_blocks": "twelve"}},
        {"config": [1]},
        {"trained_with": "silu"},
    ],
    ids=str,
)
def test_metadata_of_no_model_are_refused(fields: Any) -> None:
    with pytest.raises(CheckpointError, match="metadata of mixer_equiv that cannot be understood"):
        Checkpoint.from_arrays(random_params(CONFIG, 0), metadata=fields)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_a_newer_format_version_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"mixer{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "FORMAT_VERSION", 2)
        save(checkpoint(), path)
    found = rf"{path} has metadata of format version 2, and this mixer_equiv reads versions up to 1"
    with pytest.raises(CheckpointError, match=rf"^{found}; a newer mixer_equiv wrote it, so upgrade: pip install "):
        load(path)


@pytest.mark.parametrize("version", [0, -1, 1.0, True, "1", None])
def test_a_format_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(CheckpointError, match=f"cannot be understood: format_version is {version!r}; it must be"):
        Checkpoint.from_arrays(random_params(CONFIG, 0), metadata={"format_version": version})


def test_metadata_without_a_version_are_read_as_those_of_the_first() -> None:
    text = metadata.to_json("linen", CONFIG, Conventions("silu"), image_size_is_assumed=True)
    written = metadata.from_json(text, "x")
    assert written["format_version"] == 1
    for fields in (written, {key: value for key, value in written.items() if key != "format_version"}):
        found = Checkpoint.from_arrays(random_params(CONFIG, 0), metadata=fields)
        assert (found.config, found.trained_with) == (CONFIG, Conventions("silu"))
        assert found.image_size_is_assumed


def test_a_config_that_is_given_stands_in_for_one_in_the_file_that_makes_no_sense() -> None:
    wrong = {"config": {"num_blocks": "twelve"}, "trained_with": {"activation": "mish"}}
    assert Checkpoint.from_arrays(random_params(CONFIG, 0), config=CONFIG, metadata=wrong).config == CONFIG


def test_the_layout_in_the_metadata_settles_what_names_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = dataclasses.replace(
        LAYOUTS["timm"],
        name="twin",
        rows=tuple(
            dataclasses.replace(row, pattern="tokens tokens_mlp") if row.canonical_axes == "tokens tokens_mlp" else row
            for row in LAYOUTS["timm"].rows
        ),
    )
    monkeypatch.setitem(LAYOUTS, "twin", twin)
    square = CONFIG.replace(tokens_mlp_dim=CONFIG.num_tokens)
    arrays = relabel(random_params(square, 0), LINEN, LAYOUTS["timm"], square)
    with pytest.raises(LayoutError, match="fit the layouts timm and twin"):
        Checkpoint.from_arrays(arrays)
    for name in ("timm", "twin"):
        assert Checkpoint.from_arrays(arrays, metadata={"layout": name}).layout is LAYOUTS[name]


def test_a_layout_that_the_metadata_name_and_nobody_knows_is_noted() -> None:
    found = Checkpoint.from_arrays(checkpoint("timm").arrays, metadata={"layout": "nonsense"})
    assert "it says of itself that its layout is 'nonsense', which is not known; it is timm" in found.notes
    assert not any("not known" in note for note in checkpoint("timm").notes)


def test_metadata_whose_layout_is_no_name_are_as_if_there_were_none(tmp_path: Path) -> None:
    given = checkpoint()
    save_file(given.arrays, tmp_path / "x.safetensors", {"mixer_equiv": json.dumps({"layout": ["a"], "config": {}})})
    assert changed(given.arrays, load(tmp_path / "x.safetensors").arrays) == []
