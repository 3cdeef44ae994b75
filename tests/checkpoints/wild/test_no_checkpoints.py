"""Files and addresses that are no checkpoint: each is called what it is, and the remedy in the message works."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shlex
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import CheckpointError, load, save
from mixer_equiv.checkpoints.formats.no_checkpoint import ADDRESSES, KINDS
from mixer_equiv.models.torch import MlpMixer
from tests.support.checkpoints import CONFIG, checkpoint
from tests.support.command_line import run
from tests.support.files import changed

INNER = "mixer.safetensors"


def _inner(folder: Path) -> Path:
    return save(checkpoint(), folder / INNER)


def _tar(mode: Any) -> Callable[[Path, Path], None]:
    def write(inner: Path, path: Path) -> None:
        with tarfile.open(path, mode) as archive:
            archive.add(inner, INNER)

    return write


def _zip(inner: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, INNER)


def _compressed(compress: Callable[[bytes], bytes]) -> Callable[[Path, Path], Any]:
    return lambda inner, path: path.write_bytes(compress(inner.read_bytes()))


# How a file is made of a checkpoint, its name, and the command in its message that gets the checkpoint back.
PACKED: dict[str, tuple[Callable[[Path, Path], Any], str, str]] = {
    "tar": (_tar("w"), "x.tar", "tar xf {path}"),
    "tar.gz": (_tar("w:gz"), "x.tar.gz", "tar xzf {path}"),
    "tar.bz2": (_tar("w:bz2"), "x.tar.bz2", "tar xjf {path}"),
    "tar.xz": (_tar("w:xz"), "x.tar.xz", "tar xJf {path}"),
    "gz": (_compressed(gzip.compress), f"{INNER}.gz", "gunzip {path}"),
    "bz2": (_compressed(bz2.compress), f"{INNER}.bz2", "bunzip2 {path}"),
    "xz": (_compressed(lzma.compress), f"{INNER}.xz", "unxz {path}"),
    "zip": (_zip, "x.zip", "unzip {path}"),
    "tar as safetensors": (_tar("w"), "packed.safetensors", "tar xf {path}"),
    "zip as pt": (_zip, "x.pt", "unzip {path}"),
}


@pytest.mark.parametrize("kind", PACKED)
def test_what_is_packed_is_said_to_be_and_the_command_unpacks_it(tmp_path: Path, kind: str) -> None:
    make, name, command = PACKED[kind]
    (tmp_path / "made").mkdir()
    inner, path = _inner(tmp_path / "made"), tmp_path / name
    make(inner, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    typed = command.format(path=path)
    assert typed in str(caught.value)
    _type(typed, tmp_path)
    assert changed(checkpoint().arrays, load(tmp_path / INNER).arrays) == []


# The same by Python, where a system lacks the command.
BY_PYTHON: dict[str, Callable[[Path], Any]] = {
    "tar": lambda path: shutil.unpack_archive(path, path.parent, filter="data"),
    "unzip": lambda path: shutil.unpack_archive(path, path.parent),
    "gunzip": lambda path: path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes())),
    "bunzip2": lambda path: path.with_suffix("").write_bytes(bz2.decompress(path.read_bytes())),
    "unxz": lambda path: path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes())),
}


def _type(command: str, folder: Path) -> None:
    words = shlex.split(command)
    if shutil.which(words[0]):
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    else:
        BY_PYTHON[words[0]](Path(words[-1]))


OTHERS = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 832816016\n",
    "web page": b"\n<!DOCTYPE html><html><title>404</title></html>",
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(50),
    "zlib": zlib.compress(b"weights"),
    "Equinox": b'{"depth": 2}\n\x93NUMPY\x01\x00' + bytes(50),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(50),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "GGUF": b"GGUF" + bytes(50),
    "TFLite": b"\x1c\0\0\0TFL3" + bytes(50),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".npz", ""])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_something_else_is_called_what_it_is(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(OTHERS[kind])
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / f"x{suffix}")
    path = tmp_path / f"x{suffix}"
    assert KINDS[kind].words.format(path=path, quoted=repr(str(path))) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_of_torch_export_is_named_and_the_remedy_saves_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MlpMixer(CONFIG)
    monkeypatch.chdir(tmp_path)
    image = torch.ones(1, CONFIG.in_channels, *CONFIG.image_hw)
    torch.export.save(torch.export.export(model, (image,)), "x.pt2")
    for path in (Path("x.pt2"), Path("x.pt")):
        Path("x.pt2").rename(path)
        with pytest.raises(CheckpointError, match=f"{path} is a program of torch.export") as caught:
            load(path)
        path.rename("x.pt2")
    Path("x.pt2").rename("x.pt")
    exec(str(caught.value).partition("save its weights: ")[2], {"torch": torch})
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert changed(expected, load("weights.pt").arrays) == []


def test_arrays_one_behind_the_other_are_said_to_have_no_names(tmp_path: Path) -> None:
    with (tmp_path / "x.eqx").open("wb") as stream:
        for size in (3, 5):
            np.save(stream, np.ones(size, np.float32))
    with pytest.raises(CheckpointError, match="holds arrays without names, one behind the other, as eqx"):
        load(tmp_path / "x.eqx")


@pytest.mark.parametrize(
    ("compress", "words"), [(0, "was written by joblib"), (3, "is compressed by zlib"), (9, "is compressed by zlib")]
)
def test_a_file_of_joblib_is_named_and_the_remedy_saves_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: int, words: str
) -> None:
    joblib = pytest.importorskip("joblib")
    joblib.dump(dict(checkpoint().arrays), tmp_path / "x.pkl", compress=compress)
    with pytest.raises(CheckpointError, match=f"x.pkl {words}") as caught:
        load(tmp_path / "x.pkl")
    monkeypatch.chdir(tmp_path)
    known = {"np": np, "joblib": joblib, "arrays": joblib.load("x.pkl")}
    exec(str(caught.value).partition("arrays by name: ")[2], known)
    assert changed(checkpoint().arrays, load("weights.npz").arrays) == []


def test_each_kind_is_made_by_a_test() -> None:
    assert set(KINDS) == {*OTHERS, "tar", "gzip", "bzip2", "xz"}


@pytest.mark.parametrize("scheme", ADDRESSES)
def test_an_address_is_said_to_be_one_with_both_slashes(scheme: str) -> None:
    address = f"{scheme}://bucket/folder/Mixer-B_16.npz"
    with pytest.raises(CheckpointError) as caught:
        load(address)
    assert f"{address} is an address, and files are read; fetch it, and give the file: " in str(caught.value)
    assert f"{address} is an address" in " ".join(run("inspect", address, status=2).output.split())


def test_a_pointer_among_shards_is_named(tmp_path: Path) -> None:
    index = save(checkpoint(), tmp_path / "model.safetensors.index.json", max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*-of-*.safetensors"))[1]
    shard.write_bytes(OTHERS["git-lfs"])
    with pytest.raises(
        CheckpointError, match=rf"{shard.name} is a pointer of git-lfs.*; it is a shard of .*{index.name}"
    ):
        load(index)
