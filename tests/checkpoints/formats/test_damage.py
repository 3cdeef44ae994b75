"""Damaged files of every format are errors of one sentence, and a bug of ours is no damaged file."""

from __future__ import annotations

import argparse
import errno
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization
from hypothesis import settings
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from mixer_equiv import CheckpointError
from mixer_equiv.arrays.interop import flatten
from mixer_equiv.checkpoints import formats, metadata
from mixer_equiv.checkpoints.formats import (
    FORMATS,
    StoredArray,
    format_by_suffix,
    npy,
    npz,
    orbax,
    raw_arrays,
    torch_zip,
)
from mixer_equiv.checkpoints.formats.base import ANY_DAMAGE, DAMAGE, refuse_damage
from mixer_equiv.checkpoints.formats.pickles import file as pickle_file
from tests.support.distributed import tensors, write_folder

# So small that most bytes are of the format, and few are numbers.
TREE: dict[str, np.ndarray] = {
    "stem/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "stem/bias": np.full(3, -0.0, np.float32),
    "blocks.0.norm.weight": np.array([np.nan, -np.inf, 5e-324]),
    "scale": np.array(-0.0, np.float16),
}


def _ours(path: Path) -> None:
    format_by_suffix(path).write(path, TREE, '{"layout": "linen"}', "flax")


def _by_torch_before_zip_files(path: Path) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in TREE.items()}
    torch.save({"state_dict": tensors, "epoch": 3}, path, _use_new_zipfile_serialization=False)


def _by_a_trainer(path: Path) -> None:
    state = {name: torch.from_numpy(array) for name, array in TREE.items()}
    state["strided"] = torch.arange(24.0).reshape(4, 6)[1:, ::2].T
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1, out=path), "rng": np.random.get_state()}, path)


def _by_flax(path: Path) -> None:
    others = {"step": 3, "complex": 1 + 2j, "none": None, "list": [1, 2.5, "x"]}
    path.write_bytes(serialization.to_bytes({"params": TREE, **others}))


def _by_several_threads(path: Path) -> None:
    state = {"model": tensors(TREE), "epoch": 3}
    write_folder(path, state, storage_writer=FileSystemWriter(path, thread_count=2))


WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    **{file_format.name: (file_format.suffixes[0], _ours) for file_format in FORMATS if file_format.suffixes},
    "pickle": (".pkl", lambda path: path.write_bytes(pickle.dumps({"params": TREE, "epoch": 3}))),
    "torch with objects": (".pt", _by_a_trainer),
    "deflated npz": (".npz", lambda path: np.savez_compressed(path, **TREE)),
    "torch before zip files": (".pt", _by_torch_before_zip_files),
    "msgpack by Flax": (".msgpack", _by_flax),
    "torch.distributed.checkpoint": ("", _by_several_threads),
    "npz of objects": (".npz", lambda path: np.savez(path, {"params": TREE, "epoch": 3})),
    "npy": (".npy", lambda path: np.save(path, {"params": TREE, "epoch": 3}, allow_pickle=True)),
}


def _written(folder: Path, kind: str) -> Path:
    suffix, write = WRITERS[kind]
    folder.mkdir()
    write(folder / f"mixer{suffix}")
    return folder / f"mixer{suffix}"


def _read_all(path: Path) -> None:
    """Everything that loading a file reads of it."""
    contents = formats.read(path)
    metadata.from_json(contents.metadata, str(path))
    for _, leaf in flatten(contents.arrays):
        if isinstance(leaf, StoredArray):
            np.asarray(leaf)


# Damage


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        damaged[rng.integers(len(damaged))] ^= rng.integers(1, 256)
    return bytes(damaged)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def _grown(content: bytes, rng: np.random.Generator) -> bytes:
    at = rng.integers(len(content))
    return content[:at] + rng.bytes(rng.integers(1, 9)) + content[at:]


@pytest.mark.parametrize("damage", [_flipped, _cut, _grown], ids=["flipped", "cut", "grown"])
@pytest.mark.parametrize("kind", WRITERS)
def test_bytes_of_any_value_are_read_or_refused_in_one_sentence(
    tmp_path: Path, kind: str, damage: Callable[[bytes, np.random.Generator], bytes]
) -> None:
    rng = np.random.default_rng(7)
    messages = []
    path = _written(tmp_path / "whole", kind)
    _read_all(path)
    files = [file for file in sorted(path.parent.rglob("*")) if file.is_file() and file.stat().st_size]
    rounds = settings().max_examples // (5 if kind == "orbax" else 1)
    for _ in range(max(6, rounds)):
        shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        file = tmp_path / "damaged" / files[rng.integers(len(files))].relative_to(tmp_path / "whole")
        file.write_bytes(damage(file.read_bytes(), rng))
        try:
            _read_all(tmp_path / "damaged" / path.name)
        except CheckpointError as error:
            messages.append(str(error))
        shutil.rmtree(tmp_path / "damaged")
    assert messages or kind == "orbax"  # which reads some of its files only where devices are many
    assert [message for message in messages if path.name not in message or "\n" in message] == []


# Bugs of ours


def _bug(raised: Exception) -> Callable[..., Any]:
    def bug(*arguments: Any, **options: Any) -> Any:
        raise raised

    return bug


BUGS = [AttributeError("'dict' object has no attribute 'shape'"), TypeError("a bug"), KeyError("stem"), IndexError(3)]

# A function of ours that every format calls while it reads.
CALLED: dict[str, tuple[Any, str]] = dict.fromkeys(WRITERS, (raw_arrays.File, "at")) | {
    "orbax": (orbax, "names_below_another"),
    "pickle": (pickle_file, "contents_of"),
    "torch before zip files": (torch_zip, "_load"),
    "deflated npz": (npz, "_header"),
    "npz of objects": (npz, "read_tree"),
    "npy": (npy, "contents_of"),
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_bug_of_a_reader_comes_out_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bug: Exception
) -> None:
    path = _written(tmp_path / "whole", kind)
    monkeypatch.setattr(*CALLED[kind], _bug(bug))
    with pytest.raises(type(bug)) as caught:
        formats.read(path)
    assert caught.value is bug


# Formats whose arrays are all read at once.
AT_ONCE = "pickle", "torch before zip files", "npz of objects", "npy"

# A function of ours that is called when an array is used, and not before.
USED: dict[str, tuple[Any, str]] = dict.fromkeys(
    [kind for kind in WRITERS if kind not in AT_ONCE], (raw_arrays, "_read_into")
) | {
    "orbax": (orbax, "_restore"),
    "torch with objects": (raw_arrays.File, "bytes_at"),
    "deflated npz": (raw_arrays.File, "open"),
}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
@pytest.mark.parametrize("kind", USED)
def test_a_bug_while_an_array_is_read_comes_out_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bug: Exception
) -> None:
    path = _written(tmp_path / "whole", kind)
    monkeypatch.setattr(*USED[kind], _bug(bug))
    arrays = [leaf for _, leaf in flatten(formats.read(path).arrays) if isinstance(leaf, StoredArray)]
    with pytest.raises(type(bug)) as caught:
        np.asarray(arrays[-1])
    assert caught.value is bug


@pytest.mark.parametrize("damage", [DAMAGE, *(file_format.damage for file_format in FORMATS)])
def test_no_format_takes_the_usual_bugs_for_damage(damage: tuple[type[Exception], ...]) -> None:
    bugs = (AttributeError, TypeError, LookupError, NameError, AssertionError, ZeroDivisionError)
    assert not any(issubclass(bug, damage) for bug in bugs)
    assert not any(issubclass(error, bugs) for error in damage)


def test_an_error_is_turned_into_one_sentence_and_one_of_ours_is_left(tmp_path: Path) -> None:
    told = rf"^{tmp_path} cannot be read: it is damaged or not a checkpoint \(ValueError: one line\)$"
    with pytest.raises(CheckpointError, match=told), refuse_damage(tmp_path):
        raise ValueError("one\n line. And more")
    ours = CheckpointError("ours")
    with pytest.raises(CheckpointError) as caught, refuse_damage(tmp_path, ANY_DAMAGE):
        raise ours
    assert caught.value is ours


def test_what_the_system_lacks_is_no_damage() -> None:
    full = OSError(errno.EMFILE, "Too many open files")
    path = Path("a.npz")
    with pytest.raises(CheckpointError, match=r"^a\.npz cannot be read now: Too many open files$"), refuse_damage(path):
        raise full
    with pytest.raises(MemoryError), refuse_damage(path, ANY_DAMAGE):
        raise MemoryError
