"""`load`: files that others wrote, wrappers and prefixes, and files that cannot be read."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv import CheckpointError, ConversionError, LayoutError, MixerEquivError
from mixer_equiv.checkpoints.conversion import convert
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.models.torch import MlpMixer
from tests.support.checkpoints import CONFIG, JUNK, checkpoint
from tests.support.files import changed, snapshot


def state_dict() -> dict[str, torch.Tensor]:
    return dict(checkpoint("torch"))


class MakesDirectory:
    """Makes a directory when unpickled by free rules: the trace of code that was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_would_leave_a_trace(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(MakesDirectory(tmp_path / "trace")))
    assert (tmp_path / "trace").is_dir()


# Files that others wrote


def test_a_config_beside_it_that_is_nested_too_deep_tells_nothing(tmp_path: Path) -> None:
    path = save(checkpoint(), tmp_path / "mixer.npz")
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert changed(checkpoint().arrays, load(path).arrays) == []


@pytest.mark.parametrize("found_as", [*SUFFIXES, ".ckpt", ""])
@pytest.mark.parametrize("written_as", [".npz", ".safetensors", ".pt"])
def test_a_file_is_read_by_what_it_holds(tmp_path: Path, written_as: str, found_as: str) -> None:
    save(checkpoint(), tmp_path / f"mixer{written_as}")
    path = (tmp_path / f"mixer{written_as}").rename(tmp_path / f"renamed{found_as}")
    assert changed(checkpoint().arrays, load(path).arrays) == []


FOREIGN_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "np.savez": ("linen", lambda path: np.savez(path, **random_params(CONFIG, 0))),
    "np.savez_compressed": ("linen", lambda path: np.savez_compressed(path, **random_params(CONFIG, 0))),
    "torch.save": ("torch", lambda path: torch.save(state_dict(), path)),
    "legacy torch.save": ("torch", lambda path: torch.save(state_dict(), path, _use_new_zipfile_serialization=False)),
}


@pytest.mark.parametrize("writer", FOREIGN_FILES)
def test_files_without_our_metadata_are_read_and_say_what_was_assumed(tmp_path: Path, writer: str) -> None:
    layout, write = FOREIGN_FILES[writer]
    path = tmp_path / ("mixer.npz" if layout == "linen" else "mixer.pt")
    write(path)
    loaded = load(path)
    official = DEFAULT_CONFIG.replace(image_size=(6, 12))
    assert changed(checkpoint(layout).arrays, loaded.arrays) == []
    assert (loaded.config, loaded.config_is_stated) == (official, False)
    assert loaded.trained_with == LAYOUTS[layout].trained_with
    assert (loaded.notes, loaded.image_size_is_assumed) == (("12 tokens are taken as 3x4, an image of 6x12",), True)


def test_an_image_size_that_is_given_is_not_assumed(tmp_path: Path) -> None:
    np.savez(tmp_path / "mixer.npz", **random_params(CONFIG, 0))
    loaded = load(tmp_path / "mixer.npz", image_size=(8, 9))
    assert (loaded.config, loaded.notes, loaded.image_size_is_assumed) == (DEFAULT_CONFIG, (), False)


PREFIXES = ("module.", "model.", "_orig_mod.", "module._orig_mod.", "params/", "opt/target/")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped_and_said(tmp_path: Path, prefix: str) -> None:
    if prefix.endswith("/"):
        expected = checkpoint("linen").arrays
        np.savez(tmp_path / "mixer", **{prefix + name: array for name, array in expected.items()})
        (tmp_path / "mixer.npz").rename(tmp_path / "mixer")
    else:
        expected = checkpoint("torch").arrays
        torch.save({prefix + name: tensor for name, tensor in state_dict().items()}, tmp_path / "mixer")
    loaded = load(tmp_path / "mixer")
    assert changed(expected, loaded.arrays) == []
    assert loaded.notes[0] == f"the prefix {prefix!r} was stripped from every name"


def _training_state() -> dict[str, Any]:
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"state_dict": state_dict(), "epoch": 3, "optimizer": optimizer}


def _wrapped_twice() -> dict[str, Any]:
    return {"state_dict": {f"module.{name}": tensor for name, tensor in state_dict().items()}}


WRAPPERS: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "state_dict, epoch and optimizer": (
        _training_state,
        ["the prefix 'state_dict/' was stripped", "left out beside 'state_dict/': epoch, optimizer/"],
    ),
    "model": (lambda: {"model": state_dict()}, ["the prefix 'model/' was stripped"]),
    "state_dict of a wrapped module": (_wrapped_twice, ["the prefix 'state_dict/module.' was stripped"]),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_stripped_and_said(tmp_path: Path, wrapper: str, zipped: bool) -> None:
    build, fragments = WRAPPERS[wrapper]
    torch.save(build(), tmp_path / "mixer.pt", _use_new_zipfile_serialization=zipped)
    loaded = load(tmp_path / "mixer.pt")
    assert changed(checkpoint("torch").arrays, loaded.arrays) == []
    for fragment in fragments:
        assert fragment in "\n".join(loaded.notes)


def test_two_sets_of_weights_are_an_error_naming_both(tmp_path: Path) -> None:
    torch.save({"model": state_dict(), "ema": dict(checkpoint("torch", seed=1))}, tmp_path / "mixer.pt")
    with pytest.raises(LayoutError, match=r"mixer\.pt: two sets of Mixer weights are here, under 'model/' and 'ema/'"):
        load(tmp_path / "mixer.pt")


# Files that cannot be read


def _npz(path: Path, head_bias: bytes | None = None, *, twice: bool = False, **extra: bytes) -> None:
    """An npz as published, the member head/bias replaced or repeated, and other members beside it."""
    members = []
    for name, array in random_params(CONFIG, 0).items():
        stream = io.BytesIO()
        np.save(stream, array)
        replaced = name == "head/bias" and head_bias is not None
        members.append((f"{name}.npy", head_bias if replaced else stream.getvalue()))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore", UserWarning)
        for name, data in [*members, *members[-1:] * twice, *extra.items()]:
            archive.writestr(name, data)


def _header(shape: tuple[int, ...], data: bytes = b"1234") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def _flip_a_byte(path: Path) -> None:
    np.savez(path, **random_params(CONFIG, 0))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    path.write_bytes(damaged)


def _pickled(wrap: Callable[[Any], Any], zipped: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        evil = wrap(MakesDirectory(path.parent / "trace"))
        torch.save(evil, path, _use_new_zipfile_serialization=zipped)

    return write


UNREADABLE: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": (".npz", lambda path: None, "does not exist"),
    "directory": (".npz", Path.mkdir, "is a directory; a checkpoint is a file"),
    "empty npz": (".npz", Path.touch, "damaged or not a checkpoint"),
    "empty safetensors": (".safetensors", Path.touch, "SafetensorError: "),
    "empty pt": (".pt", Path.touch, "damaged or not a checkpoint"),
    "junk of unknown suffix": (".ckpt", lambda path: path.write_bytes(JUNK), "its contents are none of them either"),
    "junk npz": (".npz", lambda path: path.write_bytes(JUNK), "BadZipFile: File is not a zip file"),
    "junk safetensors": (".safetensors", lambda path: path.write_bytes(JUNK), "SafetensorError: "),
    "junk safetensors header": (
        ".safetensors",
        lambda path: path.write_bytes(struct.pack("<Q", 100) + b"{" + JUNK),
        "SafetensorError: ",
    ),
    "huge safetensors header": (
        ".safetensors",
        lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{" + JUNK),
        "SafetensorError: ",
    ),
    "junk pt": (".pt", lambda path: path.write_bytes(JUNK), "not a checkpoint|so it is not loaded"),
    "text pt": (".pt", lambda path: path.write_text("hello"), "damaged or not a checkpoint"),
    "npz with a member twice": (".npz", lambda path: _npz(path, twice=True), "holds head/bias.npy more than once"),
    "npz with another file": (".npz", lambda path: _npz(path, readme=b"text"), "holds 'readme', which is not an array"),
    "npz of a huge array": (".npz", lambda path: _npz(path, _header((10**9,) * 2)), "declares 8000000000000000000 "),
    "npz of a negative size": (".npz", lambda path: _npz(path, _header((-1,))), "head/bias in .*holds 4"),
    "npz of two negative sizes": (".npz", lambda path: _npz(path, _header((-1, -1), b"12345678")), "not a checkpoint"),
    "npz without an npy header": (".npz", lambda path: _npz(path, b"abc"), "damaged or not a checkpoint"),
    "npz of a future version": (
        ".npz",
        lambda path: _npz(path, b"\x93NUMPY\x09\x00ab"),
        r"npy format version \(9, 0\)",
    ),
    "npz with a flipped byte": (".npz", _flip_a_byte, "Bad CRC-32"),
    "pt of an object": (".pt", _pickled(lambda evil: evil, True), r"an object of posix\.mkdir; expected a state_dict"),
    "pt of an object and a list": (".pt", _pickled(lambda evil: [evil], True), "a list; expected a state_dict"),
    "legacy pt of an object": (".pt", _pickled(lambda evil: evil, False), "Python objects"),
    "bare pickle": (
        ".pt",
        lambda path: path.write_bytes(pickle.dumps(MakesDirectory(path.parent / "trace"), protocol=2)),
        r"an object of posix\.mkdir; expected a state_dict",
    ),
    "pt of a list": (
        ".pt",
        lambda path: torch.save([torch.ones(3)], path),
        "holds a list of 1 array without a name; expected a state_dict",
    ),
    "pt of a tensor": (".pt", lambda path: torch.save(torch.ones(3), path), "holds an array without a name; expected"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_unreadable_files_are_refused_in_words(tmp_path: Path, fault: str) -> None:
    suffix, write, fragment = UNREADABLE[fault]
    path = tmp_path / f"mixer{suffix}"
    write(path)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("fault", [name for name, (suffix, _, _) in UNREADABLE.items() if suffix == ".pt"])
def test_a_refusal_never_says_how_to_load_it_all_the_same(tmp_path: Path, fault: str) -> None:
    UNREADABLE[fault][1](tmp_path / "mixer.pt")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "mixer.pt")
    for advice in ("weights_only", "can still be loaded", "\x1b"):
        assert advice not in str(caught.value)


NOTHING: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "empty zip": (".npz", lambda path: zipfile.ZipFile(path, "w").close()),
    "npz of no arrays": (".npz", np.savez),
    "pt of nothing": (".pt", lambda path: torch.save({}, path)),
    "pt of numbers": (".pt", lambda path: torch.save({"epoch": 3, "lr": 0.1}, path)),
    "pt of an object among numbers": (".pt", _pickled(lambda evil: {"head.bias": evil, "epoch": 3}, True)),
    "pt of another model": (".pt", lambda path: torch.save(torch.nn.Linear(5, 3).state_dict(), path)),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_files_without_a_mixer_are_of_no_known_layout(tmp_path: Path, kind: str) -> None:
    suffix, write = NOTHING[kind]
    write(tmp_path / f"mixer{suffix}")
    with pytest.raises(LayoutError, match=rf"mixer\{suffix}: the arrays are of no known layout.*linen: stem/kernel"):
        load(tmp_path / f"mixer{suffix}")


def test_where_there_are_no_arrays_the_objects_are_named(tmp_path: Path) -> None:
    _pickled(lambda evil: {"head.bias": evil}, True)(tmp_path / "x.pt")
    with pytest.raises(LayoutError, match=r"objects that are no arrays were passed over: posix\.mkdir$"):
        load(tmp_path / "x.pt")


def test_a_model_that_was_saved_whole_is_read_and_said_to_be(tmp_path: Path) -> None:
    model = MlpMixer(CONFIG)
    torch.save(model, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt")
    assert changed({name: tensor.numpy() for name, tensor in model.state_dict().items()}, found.arrays) == []
    assert found.layout.name == "torch"
    assert "read as the arrays in them: mixer_equiv.models.torch.model.MlpMixer" in found.notes


def _whole_file(path: Path, kind: str) -> bytes:
    if kind == "legacy.pt":
        torch.save(state_dict(), path, _use_new_zipfile_serialization=False)
    elif kind == "published.npz":
        np.savez(path, **random_params(CONFIG, 0))
    else:
        save(checkpoint("torch"), path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["published.npz", "ours.npz", "ours.safetensors", "ours.pt", "legacy.pt"])
def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    whole = _whole_file(path, kind)
    ends = {0, 1, 8, 9, 20, 40, 100, 1000, *np.linspace(2000, len(whole) - 2, 40, dtype=int).tolist(), len(whole) - 1}
    read = []
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        try:
            load(path).check()
        except MixerEquivError:
            continue
        except Exception as error:
            read.append((end, repr(error)))
        else:
            read.append((end, "was read"))
    assert read == []


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_metadata_that_make_no_sense_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mixer{suffix}"
    save(checkpoint("torch"), path)
    path.write_bytes(path.read_bytes().replace(b"quick_gelu", b"quick_gulu"))
    with pytest.raises(MixerEquivError, match=r"quick_gulu|mixer\.pt cannot be read"):
        load(path)


def test_a_leaf_that_is_a_number_is_no_crash() -> None:
    with pytest.raises(ConversionError, match="head/bias"):
        convert({**checkpoint().arrays, "head/bias": True}, to="torch")


def test_a_size_without_bounds_is_no_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found the size '999.*expected bytes"):
        save(checkpoint(), tmp_path / "x.safetensors", max_shard_size="9" * 400)
