"""Checkpoints in several files: a part of a set is never taken for a model, whatever its format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization
from safetensors.numpy import save_file

from mixer_equiv import CheckpointError, convert, load, save
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.support.command_line import run
from tests.support.files import changed
from tests.support.sizes import CONFIG

# The weights of a Mixer of 12 blocks, in the official layout and in timm's.
STATE = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
TORCH = dict(convert(STATE, to="torch", config=CONFIG).arrays)


def _torch_save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    torch.save({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}, path)


WRITERS: dict[str, Callable[[Mapping[str, np.ndarray], Path], Any]] = {
    ".safetensors": lambda arrays, path: save_file(dict(arrays), path, metadata={"format": "pt"}),
    ".bin": _torch_save,
    ".pt": _torch_save,
    ".npz": lambda arrays, path: np.savez(path, **arrays),
    ".msgpack": lambda arrays, path: path.write_bytes(serialization.msgpack_serialize(dict(arrays))),
}


def _halves() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Stem, norm, head and five blocks, which look like a whole model; and the other blocks."""
    later = {name for name in TORCH if name.startswith("blocks.") and int(name.split(".")[1]) > 4}
    return ({n: a for n, a in TORCH.items() if n not in later}, {n: TORCH[n] for n in TORCH if n in later})


def _write(folder: Path, suffix: str, names: Iterable[str], index: str | None = None) -> list[Path]:
    paths = [folder / name for name in names]
    for half, path in zip(_halves(), paths, strict=True):
        WRITERS[suffix](half, path)
    if index is not None:
        weight_map = {name: path.name for half, path in zip(_halves(), paths, strict=True) for name in half}
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return paths


def parts(suffix: str) -> list[str]:
    return [f"model-0000{i}-of-00002{suffix}" for i in (1, 2)]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_part_by_its_name_is_read_with_the_others(tmp_path: Path, suffix: str, indexed: bool) -> None:
    index = "model.index.json" if indexed else None
    for i, path in enumerate(_write(tmp_path, suffix, parts(suffix), index), 1):
        found = load(path)
        assert changed(TORCH, found.arrays) == []
        assert found.config.num_blocks == 12
        told = "one of the files of model.index.json" if indexed else f"part {i} of 2"
        assert f"{path.name} is {told}, all of which were read" in found.notes


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_part_of_any_name_is_known_by_the_index_beside_it(tmp_path: Path, suffix: str) -> None:
    for path in _write(tmp_path, suffix, [f"first{suffix}", f"second{suffix}"], f"x{suffix}.index.json"):
        found = load(path)
        assert changed(TORCH, found.arrays) == []
        assert f"{path.name} is one of the files of x{suffix}.index.json, all of which were read" in found.notes


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_part_without_the_others_is_refused_and_says_what_to_do(tmp_path: Path, suffix: str, indexed: bool) -> None:
    first, second = _write(tmp_path, suffix, parts(suffix), "model.index.json" if indexed else None)
    kept = second.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError) as caught:
        load(first)
    if indexed:
        assert f"names shards that are missing: {second.name}; put them beside it" in str(caught.value)
    else:
        assert f"{first.name} is part 1 of 2, and neither an index nor part 2 stands beside it" in str(caught.value)
        assert "put all parts into one folder" in str(caught.value)
    kept.rename(second)  # the remedy
    assert changed(TORCH, load(first).arrays) == []


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_only_part_is_a_model(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model-00001-of-00001{suffix}"
    WRITERS[suffix](TORCH, path)
    assert changed(TORCH, load(path).arrays) == []


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_folder_with_all_parts_is_read(tmp_path: Path, suffix: str, indexed: bool) -> None:
    _write(tmp_path, suffix, parts(suffix), "model.index.json" if indexed else None)
    (tmp_path / "config.json").write_text("{}")
    assert changed(TORCH, load(tmp_path).arrays) == []


def test_parts_of_two_sets_and_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, ".bin", parts(".bin"))
    _write(tmp_path, ".bin", [name.replace("model", "other") for name in parts(".bin")])
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints \(.*model-00001.*, .*\); give the path of one"):
        load(tmp_path)
    assert changed(TORCH, load(tmp_path / parts(".bin")[0]).arrays) == []
    WRITERS[".bin"](TORCH, tmp_path / parts(".bin")[1])
    with pytest.raises(CheckpointError, match=r"both hold .*, so they are no parts of one set"):
        load(tmp_path / parts(".bin")[0])


def test_a_name_of_a_thousand_million_parts_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "model-000000001-of-999999999.safetensors"
    WRITERS[".safetensors"](TORCH, path)
    with pytest.raises(
        CheckpointError, match="is part 1 of 999999999, and neither an index nor parts 2, 3, 4, 5 stand"
    ):
        load(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "mixer.pth", "weights.npz"])
def test_a_folder_with_one_file_is_that_file(tmp_path: Path, name: str) -> None:
    WRITERS[".pt" if name.endswith(".pth") else f".{name.rpartition('.')[2]}"](TORCH, tmp_path / name)
    for other in ("config.json", "README.md", "training_args.bin", "optimizer.pt", "rng_state_0.pth", ".gitattributes"):
        (tmp_path / other).write_bytes(b"{}")
    assert changed(TORCH, load(tmp_path).arrays) == []


def test_of_the_hub_s_formats_of_one_model_the_first_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        WRITERS[f".{name.rpartition('.')[2]}"](TORCH, tmp_path / name)
    found = load(tmp_path)
    assert changed(TORCH, found.arrays) == []
    assert "model.safetensors was read, and not pytorch_model.bin beside it" in found.notes


def test_of_the_steps_that_flax_wrote_the_last_is_read(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        params = {name: array + np.float32(step) for name, array in STATE.items()}
        (tmp_path / f"checkpoint_{step}").write_bytes(serialization.msgpack_serialize(params))
    found = load(tmp_path)
    assert changed({name: array + np.float32(10) for name, array in STATE.items()}, found.arrays) == []
    assert "checkpoint_10 is the last of 3 steps" in found.notes


def test_the_command_says_that_all_parts_were_read(tmp_path: Path) -> None:
    first, _ = _write(tmp_path, ".safetensors", parts(".safetensors"))
    assert "is part 1 of 2, all of which were read" in " ".join(run("inspect", first).output.split())
    assert save(load(first), tmp_path / "whole.safetensors").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_nothing_is_written_under_the_name_of_a_part(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(
        CheckpointError, match="has the name of part 1 of 2, as which it would be read; give another name"
    ):
        save(convert(STATE, to="torch", config=CONFIG), tmp_path / parts(suffix)[0])
    assert list(tmp_path.iterdir()) == []
