"""Files: what was saved comes back bit for bit with its metadata, and what is damaged is refused in words."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from mixer_equiv import Checkpoint, CheckpointError, ConversionError, LayoutError, MixerConfig, MixerEquivError
from mixer_equiv.arrays.casting import cast
from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.arrays.lazy import Deferred, LazyArrays
from mixer_equiv.checkpoints import formats, metadata
from mixer_equiv.checkpoints.conversion import convert, relabel
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import random_params
from mixer_equiv.layouts import LAYOUTS, LINEN, Conventions
from mixer_equiv.models.torch import MlpMixer
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed, files_no_larger_than, snapshot

# No layout's own conventions, so that they can come from the metadata only.
CONFIG = DEFAULT_CONFIG.replace(activation="quick_gelu", layer_norm_eps=1e-3)
NAMES = tuple(LINEN.bindings(CONFIG.num_blocks))
WRITABLE = [name for name, layout in LAYOUTS.items() if not layout.read_only]
JUNK = np.random.default_rng(5).bytes(500)


def in_layout(
    params: Mapping[str, np.ndarray], layout: str = "linen", config: MixerConfig | None = CONFIG, **fields: Any
) -> Checkpoint:
    arrays = relabel(params, LINEN, LAYOUTS[layout], CONFIG)
    return Checkpoint.from_arrays(arrays, layout=layout, config=config, **fields)


def checkpoint(layout: str = "linen", seed: int = 0, config: MixerConfig | None = CONFIG) -> Checkpoint:
    return in_layout(random_params(CONFIG, seed), layout, config)


def files_of(path: Path) -> list[str]:
    """What stands in the folder of a checkpoint that is alone there: itself, and the shards of an index."""
    shards = json.loads(path.read_text())["weight_map"].values() if path.name.endswith(".index.json") else ()
    return sorted({path.name, *shards})


def old_checkpoint(folder: Path, suffix: str) -> Path:
    """What is to be replaced: junk, or in the place of a directory a true checkpoint, as no other may go."""
    path = folder / f"mixer{suffix}"
    if formats.format_by_suffix(path).is_directory:
        save(checkpoint(seed=1), path)
    else:
        path.write_bytes(b"old")
    return path


def state_dict() -> dict[str, torch.Tensor]:
    return dict(checkpoint("torch"))


class MakesDirectory:
    """Makes a directory when unpickled by free rules: the trace of code that was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


# What the checks below rest on


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


def test_code_in_a_pickle_would_leave_a_trace(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(MakesDirectory(tmp_path / "trace")))
    assert (tmp_path / "trace").is_dir()


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("suffix", SUFFIXES)
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


# Files that others wrote


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


def _float8_safetensors(path: Path) -> None:
    header = b'{"head.bias":{"dtype":"F8_E4M3","shape":[7],"data_offsets":[0,7]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1234567")


def _objects(path: Path) -> None:
    np.savez(path, **random_params(CONFIG, 0) | {"head/bias": np.array([MakesDirectory(path.parent / "trace")])})


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
    "safetensors of float8": (".safetensors", _float8_safetensors, "F8_E4M3|float8|head.bias"),
    "junk pt": (".pt", lambda path: path.write_bytes(JUNK), "not a checkpoint|so it is not loaded"),
    "text pt": (".pt", lambda path: path.write_text("hello"), "damaged or not a checkpoint"),
    "npz of objects": (".npz", _objects, "head/bias in .*is an array of Python objects .* never loaded"),
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
    "pt of a module": (".pt", lambda path: torch.save(MlpMixer(CONFIG), path), r"save model\.state_dict\(\) alone"),
    "pt of an object": (".pt", _pickled(lambda evil: evil, True), "Python objects.*save model.state_dict"),
    "pt of an object among weights": (".pt", _pickled(lambda evil: {"head.bias": evil}, True), "Python objects"),
    "legacy pt of an object": (".pt", _pickled(lambda evil: evil, False), "Python objects"),
    "bare pickle": (
        ".pt",
        lambda path: path.write_bytes(pickle.dumps(MakesDirectory(path.parent / "trace"), protocol=2)),
        "not a checkpoint|so it is not loaded",
    ),
    "pt of a list": (".pt", lambda path: torch.save([torch.ones(3)], path), "holds a list; expected a state_dict"),
    "pt of a tensor": (".pt", lambda path: torch.save(torch.ones(3), path), "holds a Tensor; expected a state_dict"),
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
    "pt of another model": (".pt", lambda path: torch.save(torch.nn.Linear(5, 3).state_dict(), path)),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_files_without_a_mixer_are_of_no_known_layout(tmp_path: Path, kind: str) -> None:
    suffix, write = NOTHING[kind]
    write(tmp_path / f"mixer{suffix}")
    with pytest.raises(LayoutError, match=rf"mixer\{suffix}: the arrays are of no known layout.*linen: stem/kernel"):
        load(tmp_path / f"mixer{suffix}")


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


# Files that cannot be written

UNWRITABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown suffix": (lambda folder: folder / "mixer.ckpt", r"suffix '\.ckpt'; a checkpoint is one of \.npz"),
    "no suffix": (lambda folder: folder / "mixer", r"suffix ''; a checkpoint is one of \.npz"),
    "missing directory": (lambda folder: folder / "missing" / "mixer.npz", "there is no directory"),
    "below a file": (lambda folder: folder / "file" / "mixer.npz", "there is no directory"),
    "existing file": (lambda folder: folder / "old.npz", r"exists; pass force=True \(--force\)"),
    "directory": (lambda folder: folder / "folder.npz", "is a directory; give the name of a file"),
    # Where not even root can write.
    **{f"/proc{s}": (lambda folder, s=s: Path(f"/proc/mixer{s}"), "cannot be written") for s in SUFFIXES},
}


@pytest.mark.parametrize("target", UNWRITABLE)
def test_what_cannot_be_written_is_said_and_nothing_is_touched(tmp_path: Path, target: str) -> None:
    (tmp_path / "old.npz").write_bytes(JUNK)
    (tmp_path / "file").write_bytes(JUNK)
    (tmp_path / "folder.npz").mkdir()
    build, fragment = UNWRITABLE[target]
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=fragment):
        save(checkpoint(), build(tmp_path))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("force", [True, False])
def test_a_single_file_is_not_put_beside_an_index_of_its_name(tmp_path: Path, force: bool) -> None:
    save(checkpoint(), tmp_path / "a.safetensors", max_shard_size="10KB")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors\.index\.json is a sharded checkpoint of this name"):
        save(checkpoint(seed=1), tmp_path / "a.safetensors", force=force)
    assert snapshot(tmp_path) == before


def test_force_removes_no_file_that_an_index_names_but_that_is_not_its_shard(tmp_path: Path) -> None:
    save(checkpoint(seed=1), tmp_path / "mine.safetensors")
    before = snapshot(tmp_path)
    index = {"weight_map": dict.fromkeys(checkpoint().arrays, "mine.safetensors")}
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps(index))
    save(checkpoint(), tmp_path / "a.safetensors", max_shard_size="10KB", force=True)
    assert snapshot(tmp_path).items() >= before.items()
    assert changed(checkpoint().arrays, load(tmp_path / "a.safetensors.index.json").arrays) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_force_replaces_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mixer{suffix}"
    save(checkpoint(seed=1), path)
    save(checkpoint(seed=2), path, force=True)
    assert changed(checkpoint(seed=2).arrays, load(path).arrays) == []
    assert sorted(os.listdir(tmp_path)) == files_of(path)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(OSError(28, "No space left on device"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if not suffix.endswith(".index.json")])
def test_a_write_that_fails_midway_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, raised: BaseException, expected: type
) -> None:
    def fail(path: Path, *arguments: Any) -> None:
        path.write_bytes(JUNK)
        raise raised

    path = old_checkpoint(tmp_path, suffix)
    before = snapshot(tmp_path)
    failing = [dataclasses.replace(file_format, write=fail) for file_format in formats.FORMATS]
    monkeypatch.setattr(formats, "FORMATS", failing)
    with pytest.raises(expected):
        save(checkpoint(), path, force=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_is_an_error_of_ours_and_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = old_checkpoint(tmp_path, suffix)
    before = snapshot(tmp_path)
    try:
        with files_no_larger_than(20_000), pytest.raises(CheckpointError, match="cannot be written"):
            save(checkpoint(), path, force=True)
    finally:
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_appears_while_it_is_written_is_not_replaced_without_force(tmp_path: Path, suffix: str) -> None:
    given, path = checkpoint(), tmp_path / f"mixer{suffix}"
    is_directory = formats.format_by_suffix(path).is_directory
    precious = path / "file" if is_directory else tmp_path / "mixer-00001-of-00001.safetensors"
    precious = path if not is_directory and not suffix.endswith(".json") else precious

    def appear() -> np.ndarray:
        precious.parent.mkdir(exist_ok=True)
        precious.write_text("precious")
        return given.arrays["head/bias"]

    late = Deferred(given.specs["head/bias"].shape, given.specs["head/bias"].dtype, appear)
    lazy = dataclasses.replace(given, arrays=LazyArrays({**given.arrays, "head/bias": late}))
    with pytest.raises(CheckpointError, match="appeared meanwhile; pass force=True"):
        save(lazy, path)
    assert precious.read_text() == "precious"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [precious]


def _refused(*paths: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".orbax"])
def test_what_replaces_a_file_has_its_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, linked: bool
) -> None:
    if not linked:
        monkeypatch.setattr(os, "link", _refused)
    path = tmp_path / f"mixer{suffix}"
    save(checkpoint(seed=1), path)
    usual = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    for file in tmp_path.iterdir():
        file.chmod(0o640)
    save(checkpoint(seed=2), path, force=True)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(usual, 0o640)
    assert all(mode & 0o777 != 0o640 for mode in usual.values())
    assert changed(checkpoint(seed=2).arrays, load(path).arrays) == []


# astype


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_astype_rounds_every_value_once(given: str, wanted: str) -> None:
    source = in_layout({name: array.astype(given) for name, array in random_params(CONFIG, 0).items()})
    cast = source.astype(wanted)
    assert changed({name: array.astype(wanted) for name, array in source.arrays.items()}, cast.arrays) == []
    assert (source.dtypes, cast.dtypes) == ((given,), (wanted,))
    assert (cast.layout, cast.config, cast.trained_with) == (source.layout, source.config, source.trained_with)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_float64_is_rounded_to_bfloat16_to_nearest_and_once(beside: int, sign: float) -> None:
    every = np.arange(0x7F80, dtype=np.uint16).view(BFLOAT16).astype(np.float64)
    below, above = every[:-1], every[1:]
    ties = (below + above) / 2
    values = np.nextafter(ties, np.inf * beside) if beside else ties
    even = np.where(np.arange(len(below)) % 2, above, below)
    expected = np.where(values > ties, above, np.where(values < ties, below, even))
    (found,) = cast({"x": sign * values}, BFLOAT16).values()
    np.testing.assert_array_equal(found.astype(np.float64), sign * expected)


def test_casts_of_any_shape_and_order_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixer_equiv.arrays.casting.PIECE", 64)
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(37, 11))
    given = {"rows": whole, "columns": np.asfortranarray(whole), "transposed": whole.T[::2], "one": np.array(0.1)}
    given |= {"none": np.empty((0, 3)), "vector": rng.normal(size=1000), "four": rng.normal(size=(3, 2, 5, 7)).T}
    for dtype in map(np.dtype, ("float16", "float32", "float64")):
        made = cast(given, dtype)
        assert changed({name: array.astype(dtype) for name, array in given.items()}, made) == []
    assert {name: array.shape for name, array in cast(given, BFLOAT16).items()} == {
        n: a.shape for n, a in given.items()
    }


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "nonsense", "float8_e4m3fn", "longdouble"])
def test_astype_takes_floating_point_dtypes_that_files_hold(dtype: str) -> None:
    with pytest.raises(ConversionError, match=f"{dtype}.*must be one of float16, bfloat16, float32, float64"):
        checkpoint().astype(dtype)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", -3.4e38 * 2), ("float32", 1e39)])
def test_astype_refuses_to_make_infinities(dtype: str, value: float) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][3] = value
    with pytest.raises(ConversionError, match=f"{dtype} cannot hold values of head/bias: they would become infinite"):
        in_layout(params).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_astype_keeps_infinities_and_nans_that_were_there(dtype: str) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][:3] = np.inf, -np.inf, np.nan
    cast = in_layout(params).astype(dtype).arrays["head/bias"].astype(np.float64)
    np.testing.assert_array_equal(cast[:3], [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_astype_of_any_bits_warns_of_nothing(dtype: str) -> None:
    source = in_layout(arbitrary_bits(dtype))
    cast = source.astype("float64")
    with np.errstate(invalid="ignore"):
        for name, array in source.arrays.items():
            np.testing.assert_array_equal(cast.arrays[name], array.astype(np.float64))


def test_an_assumption_is_stated_again_after_saving(tmp_path):
    params = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
    np.savez(tmp_path / "a.npz", **params)
    first = load(tmp_path / "a.npz")
    save(first, tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors")
    assert first.notes == again.notes == ("12 tokens are taken as 3x4, an image of 6x12",)
    assert again.image_size_is_assumed
    assert load(tmp_path / "b.safetensors", image_size=(8, 9)).notes == ()


def test_saving_to_a_link_writes_the_file_it_points_to(tmp_path):
    params = {name: array.astype(np.float32) for name, array in random_params(CONFIG, 0).items()}
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.npz", tmp_path / "link.npz"
    real.write_bytes(b"old")
    link.symlink_to(real)
    save(params, link, force=True)
    assert link.is_symlink()
    assert len(load(real)) == 150


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
def test_metadata_of_no_model_are_refused(fields):
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


def test_what_is_no_whole_mixer_is_not_saved(tmp_path):
    params = random_params(CONFIG, 0)
    del params["stem/bias"]
    with pytest.raises(ConversionError, match="missing: stem/bias"):
        save(params, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_the_layout_in_the_metadata_settles_what_names_leave_open(monkeypatch):
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


def test_metadata_whose_layout_is_no_name_are_as_if_there_were_none(tmp_path: Path) -> None:
    given = checkpoint()
    save_file(given.arrays, tmp_path / "x.safetensors", {"mixer_equiv": json.dumps({"layout": ["a"], "config": {}})})
    assert changed(given.arrays, load(tmp_path / "x.safetensors").arrays) == []


def test_a_leaf_that_is_a_number_is_no_crash() -> None:
    with pytest.raises(ConversionError, match="head/bias"):
        convert({**checkpoint().arrays, "head/bias": True}, to="torch")


def test_what_a_cast_refuses_is_said_in_its_own_words_alone(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][3] = 1e300
    save(in_layout(params), tmp_path / "x.npz")
    with pytest.raises(ConversionError, match=r"^float32 cannot hold values of head/bias: they would become infinite$"):
        save(load(tmp_path / "x.npz", lazy=True).astype("float32"), tmp_path / "y.npz")


@pytest.mark.parametrize("length", [243, 200])
def test_a_name_as_long_as_the_system_takes(tmp_path: Path, length: int) -> None:
    path = tmp_path / f"{'a' * length}.safetensors"
    assert save(checkpoint(), path) == path
    assert changed(checkpoint().arrays, load(path).arrays) == []


def test_a_name_longer_than_the_system_takes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: File name too long"):
        save(checkpoint(), tmp_path / f"{'a' * 244}.safetensors")


def test_a_size_without_bounds_is_no_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found the size '999.*expected bytes"):
        save(checkpoint(), tmp_path / "x.safetensors", max_shard_size="9" * 400)
