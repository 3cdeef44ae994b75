"""Files converted array by array: the bytes of a conversion at once, in little memory, and nothing lost on the way."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from mixer_equiv import (
    Checkpoint,
    CheckpointError,
    ConversionError,
    atomic,
    convert,
    drop_head,
    enlarge,
    load,
    new_head,
    save,
)
from mixer_equiv.arrays.chunks import (
    CHUNK_BYTES,
    THREADS,
    TILE,
    as_contiguous,
    byte_chunks,
    contiguous_copy,
    group_by_size,
    map_in_threads,
    prefetch,
)
from mixer_equiv.arrays.interop import to_torch
from mixer_equiv.arrays.lazy import Deferred, LazyArrays, as_lazy, materialize, prefetch_arrays
from mixer_equiv.arrays.stacking import split_stacks
from mixer_equiv.checkpoints.formats import SUFFIXES, format_by_suffix, npz, raw_arrays, read
from mixer_equiv.cli import app
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.layouts import LAYOUTS
from mixer_equiv.models.torch import MlpMixer
from tests.support.checkpoints import WRITABLE
from tests.support.files import changed, snapshot
from tests.support.scripts import printed

CONFIG = DEFAULT_CONFIG
PARAMS = random_params(CONFIG, 0)
RNG = np.random.default_rng(7)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    np.savez(tmp_path / "published.npz", **{name: array.astype(np.float32) for name, array in PARAMS.items()})
    return tmp_path / "published.npz"


@pytest.fixture(autouse=True)
def small_arrays_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each array is a task of its own, as only large ones are otherwise."""
    for module in ("arrays.lazy", "checkpoints.formats.safetensors"):
        monkeypatch.setattr(f"mixer_equiv.{module}.CHUNK_BYTES", 1)


def command(*arguments: Any, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


# Pieces


def _arrays() -> dict[str, np.ndarray]:
    wide = RNG.normal(size=(2 * TILE + 3, 3 * TILE - 5))
    return {
        "in order": wide,
        "transposed": wide.T,
        "transposed, larger than a piece": RNG.normal(size=(TILE + 1, CHUNK_BYTES // 800)).astype(np.float32).T,
        "backwards": wide[::-1, ::-1],
        "backwards and transposed": wide[::-1].T,
        "every other": wide[::2, 1::3],
        "of four axes": RNG.normal(size=(3, 5, 2, 7)).transpose(3, 2, 0, 1),
        "with axes of one": wide.T[:, None, :, None],
        "bfloat16": wide.T.astype(ml_dtypes.bfloat16, order="K"),
        "repeated": np.broadcast_to(wide[:, :1], (2 * TILE + 3, 9)),
        "scalar": np.array(-0.0),
        "empty": np.empty((0, 3)),
        "empty rows": np.empty((3, 0)).T[:, ::-1],
        "a row longer than a piece": RNG.normal(size=(CHUNK_BYTES, 2)).T,
    }


ARRAYS = _arrays()


@pytest.mark.parametrize("name", ARRAYS)
def test_pieces_are_the_bytes_in_order(name: str) -> None:
    array = ARRAYS[name]
    assert b"".join(bytes(piece) for piece in byte_chunks(array)) == array.tobytes()
    assert max((len(piece) for piece in byte_chunks(array)), default=0) <= max(
        CHUNK_BYTES, array[:1].nbytes if array.ndim else 8
    )


@pytest.mark.parametrize("name", ARRAYS)
def test_copies_are_new_and_in_order(name: str) -> None:
    array = ARRAYS[name]
    for copy in (contiguous_copy(array), as_contiguous(array)):
        assert changed({"": array}, {"": copy}) == []
        assert copy.flags.c_contiguous
    assert not np.shares_memory(contiguous_copy(array), array)


def test_the_next_is_made_meanwhile_and_no_more() -> None:
    made: list[int] = []
    second = threading.Event()

    def make(key: int) -> int:
        made.append(key)
        if key == 1:
            second.set()
        return key * 10

    for taken, (key, value) in enumerate(prefetch(range(9), make)):
        assert second.wait(5)
        assert value == key * 10 == taken * 10
        assert len(made) <= taken + 2
    assert made == list(range(9))


def test_what_fails_ahead_fails_where_it_is_taken() -> None:
    stream = prefetch([1, 0, 2], lambda key: 1 // key)
    assert next(stream) == (1, 1)
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_several_are_at_work_at_a_time_and_come_in_their_order() -> None:
    together = threading.Barrier(THREADS, timeout=5)

    def work(key: int) -> int:
        together.wait()
        return 10 * key

    assert map_in_threads(range(3 * THREADS), work) == [10 * key for key in range(3 * THREADS)]


def test_the_first_that_fails_is_raised_and_no_more_are_begun() -> None:
    begun: list[int] = []

    def work(key: int) -> float:
        begun.append(key)
        return 1 / (key - 2)

    with pytest.raises(ZeroDivisionError):
        map_in_threads(range(10**4), work)
    assert len(begun) < 10**4


def test_keys_are_put_together_up_to_a_limit() -> None:
    assert group_by_size({"a": 4, "b": 6, "c": 1, "d": 11, "e": 0}, 10) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_a_stack_is_read_once_by_all_threads_together() -> None:
    stack, read = RNG.normal(size=(40, 3)), list[None]()

    def make() -> np.ndarray:
        read.append(None)
        time.sleep(0.01)
        return stack

    parts = split_stacks({"kernels": Deferred(stack.shape, stack.dtype, make)}, lambda name: 1)
    rows = materialize(LazyArrays(parts))
    assert len(read) == 1
    np.testing.assert_array_equal(np.stack([rows[f"kernels[{i}]"] for i in range(40)]), stack)


# The same bytes


def _content(path: Path) -> Any:
    """All that a file holds but its times."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return archive.comment, [(info.filename, archive.read(info)) for info in archive.infolist()]
    if path.is_dir():
        arrays = read(path).arrays
        return {name: (leaf.dtype, np.asarray(leaf).tobytes()) for name, leaf in as_lazy(_flat(arrays)).leaves.items()}
    return path.read_bytes()


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


CHANGES: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "as it is": lambda found: found,
    "torch": lambda found: convert(found, to="torch"),
    "bfloat16": lambda found: convert(found, to="torch").astype("bfloat16"),
    "no head": lambda found: convert(drop_head(found), to="torch"),
    "new head": lambda found: new_head(convert(found, to="torch"), 4),
    "enlarged": lambda found: enlarge(convert(found, to="torch"), tuple(2 * side for side in CONFIG.image_hw)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_written_lazily_is_written_eagerly(tmp_path: Path, published: Path, suffix: str, change: str) -> None:
    paths = []
    for lazy in (True, False):
        found = load(published, config=CONFIG, lazy=lazy)
        result = CHANGES[change](found)
        assert isinstance(result.arrays, LazyArrays) == lazy
        (tmp_path / str(lazy)).mkdir()
        paths.append(save(result, tmp_path / str(lazy) / f"mixer{suffix}"))
    contents = [_content(path) for path in paths]
    assert contents[0] == contents[1]


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("layout", WRITABLE)
def test_every_layout_is_converted_lazily_as_eagerly(published: Path, layout: str) -> None:
    lazy, eager = (convert(load(published, config=CONFIG, lazy=lazy), to=layout) for lazy in (True, False))
    assert lazy.specs == eager.specs
    assert changed(eager.whole, lazy.whole) == []
    assert all(array.flags.c_contiguous for array in lazy.whole.values())


MIXED: dict[str, np.ndarray] = {
    "z": np.arange(3, dtype=np.float16),
    "a": np.arange(5, dtype=np.float32),
    "é": np.array(2.5),
    "b": np.arange(4).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=(3, 2)).T,
    "e": np.empty((0, 2), np.float32),
}


def test_safetensors_are_what_the_library_writes(tmp_path: Path) -> None:
    format_by_suffix(Path("x.safetensors")).write(tmp_path / "ours.safetensors", MIXED, '{"é": 1}', "torch")
    theirs = {name: array.copy(order="C") for name, array in MIXED.items()}
    save_file(theirs, tmp_path / "theirs.safetensors", {"format": "pt", "mixer_equiv": '{"é": 1}'})
    files = [(tmp_path / f"{whose}.safetensors").read_bytes() for whose in ("ours", "theirs")]
    lengths = [struct.unpack("<Q", file[:8])[0] for file in files]
    assert lengths[0] == lengths[1]  # only the order of the two metadata may differ
    headers = [json.loads(file[8 : 8 + lengths[0]]) for file in files]
    assert headers[0] == headers[1]
    assert files[0][8 + lengths[0] :] == files[1][8 + lengths[0] :]
    assert changed(theirs, load_file(tmp_path / "ours.safetensors")) == []


def test_npz_are_what_numpy_writes(tmp_path: Path) -> None:
    format_by_suffix(Path("x.npz")).write(tmp_path / "ours.npz", MIXED, '{"é": 1}', "flax")
    np.savez(tmp_path / "theirs.npz", **{name: array.copy(order="C") for name, array in MIXED.items()})
    ours, theirs = (_content(tmp_path / f"{whose}.npz") for whose in ("ours", "theirs"))
    assert ours[1] == theirs[1]
    assert json.loads(ours[0]) == {"é": 1}


# What is checked


def _damaged(path: Path, name: str) -> bytes:
    """Flip one bit in the numbers of an array, and give them as they are now."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + sum(struct.unpack("<HH", content[info.header_offset + 26 :][:4]))
    end = start + info.compress_size
    content[end - 6] ^= 4
    path.write_bytes(content)
    return bytes(content[end - 4 * PARAMS[name].size : end])


BROKEN = "MixerBlock_3/channel_mixing/Dense_1/bias"  # not among the first to be read
MESSAGE = rf"published\.npz cannot be read: .*BadZipFile: Bad CRC-32 for file '{BROKEN}\.npy'"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_flipped_bit_is_found_and_the_target_kept(published: Path, suffix: str) -> None:
    _damaged(published, BROKEN)
    target = published.with_name(f"target{suffix}")
    before = snapshot(published.parent)
    with pytest.raises(CheckpointError, match=MESSAGE):
        save(convert(load(published, lazy=True), to="torch"), target)
    assert snapshot(published.parent) == before
    if target.suffix != ".orbax":
        target.write_bytes(b"old")
        before = snapshot(published.parent)
    assert "Bad CRC-32" in command("convert", published, target, "--force", status=2)
    assert snapshot(published.parent) == before


@pytest.mark.parametrize("crc32", list(dict.fromkeys([zlib.crc32, raw_arrays.crc32])))
def test_crcs_are_checked_by_either_library(published: Path, monkeypatch: pytest.MonkeyPatch, crc32: Any) -> None:
    for module in (npz, raw_arrays):
        monkeypatch.setattr(module, "crc32", crc32)
    assert changed(load(published).arrays, load(published, verify=False).arrays) == []
    _damaged(published, BROKEN)
    with pytest.raises(CheckpointError, match=MESSAGE):
        load(published)


def test_a_flipped_bit_is_found_when_nothing_is_written(published: Path) -> None:
    _damaged(published, BROKEN)
    assert "Bad CRC-32" in command("convert", published, published.with_name("x.npz"), "--dry-run", status=2)
    with pytest.raises(CheckpointError, match=MESSAGE):
        load(published)


def test_without_verifying_the_bits_are_taken_as_they_are(published: Path) -> None:
    numbers = _damaged(published, BROKEN)
    command("convert", published, published.with_name("x.npz"), "--to", "linen", "--no-verify")
    with np.load(published.with_name("x.npz")) as arrays:
        assert arrays[BROKEN].tobytes() == numbers
    assert load(published, verify=False).arrays[BROKEN].tobytes() == numbers


def test_compressed_members_are_always_verified(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "published.npz", **PARAMS)
    assert changed(PARAMS, load(tmp_path / "published.npz", config=CONFIG, lazy=True).arrays) == []
    with zipfile.ZipFile(tmp_path / "published.npz") as archive:
        info = archive.getinfo(f"{BROKEN}.npy")
    content = (tmp_path / "published.npz").read_bytes()
    told = content.rindex(struct.pack("<I", info.CRC))  # in the directory
    (tmp_path / "published.npz").write_bytes(content[:told] + b"\0\0\0\0" + content[told + 4 :])
    with pytest.raises(CheckpointError, match=MESSAGE):
        load(tmp_path / "published.npz", verify=False)


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Fortran": np.asfortranarray,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("options", [{}, {"lazy": True}, {"mmap": True}, {"verify": False}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_members_in_another_order_are_read(tmp_path: Path, form: str, options: dict[str, bool]) -> None:
    np.savez(tmp_path / "x.npz", **{name: FORMS[form](array) for name, array in PARAMS.items()})
    assert changed(PARAMS, load(tmp_path / "x.npz", **options).arrays) == []


def test_a_file_cut_after_it_was_opened_is_an_error(published: Path) -> None:
    found = load(published, lazy=True, verify=False)
    os.truncate(published, 5000)
    with pytest.raises(CheckpointError, match=r"published\.npz was replaced or written to since it was opened"):
        dict(found.arrays)


def test_a_file_that_is_shorter_than_its_arrays_is_an_error(published: Path) -> None:
    array = raw_arrays.File.at(published).array((published.stat().st_size,), np.dtype(np.float32), 0)
    with pytest.raises(CheckpointError, match=r"published\.npz cannot be read: .*it ends \d+ bytes before an array"):
        np.asarray(array)


@pytest.mark.parametrize("way", ["replaced", "written to"])
@pytest.mark.parametrize(
    "suffix", [".npz", "deflated.npz", ".safetensors", ".safetensors.index.json", ".msgpack", ".pt"]
)
def test_two_versions_of_a_file_are_never_mixed(published: Path, suffix: str, way: str) -> None:
    source, target = load(published), published.with_name(f"x{suffix}")
    if suffix == "deflated.npz":
        np.savez_compressed(target, **source.arrays)
    else:
        save(source, target)
    found, mapped = load(target, lazy=True, verify=False), load(target, mmap=True)
    before = {name: np.array(array) for name, array in found.arrays.items()}
    for part in published.parent.glob("x*.safetensors") if suffix.endswith("json") else [target]:
        if way == "replaced":  # by one with the same names, shapes and time
            time_of = part.stat()
            part.with_name("new").write_bytes(part.read_bytes())
            os.utime(part.with_name("new"), ns=(time_of.st_atime_ns, time_of.st_mtime_ns))
            os.replace(part.with_name("new"), part)
        else:
            part.write_bytes(part.read_bytes())
    with pytest.raises(CheckpointError, match=r"was replaced or written to since it was opened; open it again"):
        dict(found.arrays)
    if way == "replaced":
        assert changed(before, mapped.arrays) == []
    assert changed(before, load(target, lazy=True).arrays) == []
    with pytest.raises(CheckpointError, match="was replaced or written to"):
        save(found, published.with_name("y.npz"))
    assert not published.with_name("y.npz").exists()


def test_a_checkpoint_saved_over_its_own_file_is_whole_and_then_done_with(published: Path) -> None:
    found = load(published, lazy=True)
    rounded = {name: array.astype(np.float64) for name, array in found.arrays.items()}
    save(found.astype("float64"), published, force=True)
    assert changed(rounded, load(published).arrays) == []
    with pytest.raises(CheckpointError, match="was replaced or written to"):
        save(found, published.with_name("y.safetensors"))


def test_lazy_checkpoints_are_pickled_with_all_that_is_to_be_done(published: Path) -> None:
    found = convert(load(published, lazy=True), to="torch").astype("bfloat16")
    again = pickle.loads(pickle.dumps(found))
    assert (
        changed(
            {n: a.view(np.uint16) for n, a in found.arrays.items()},
            {n: a.view(np.uint16) for n, a in again.arrays.items()},
        )
        == []
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_being_stopped_leaves_no_temporary_files(published: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    number = getattr(signal, name)
    before, inherited = snapshot(published.parent), signal.signal(number, signal.SIG_DFL)  # nohup ignores one of them
    monkeypatch.setattr("mixer_equiv.checkpoints.formats.npz.byte_chunks", lambda array: os.kill(os.getpid(), number))
    try:
        command("convert", published, published.with_name("x.npz"), status=128 + number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)
    assert snapshot(published.parent) == before


def test_signals_that_are_ignored_stay_ignored(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(npz, "byte_chunks", lambda array: os.kill(os.getpid(), signal.SIGHUP) or byte_chunks(array))
    try:
        command("convert", published, published.with_name("x.npz"))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, inherited)
    assert load(published.with_name("x.npz")).config == load(published).config


def test_what_a_dtype_cannot_hold_is_said_of_all_arrays_and_nothing_is_written(published: Path) -> None:
    large = {name: array.astype(np.float32) for name, array in PARAMS.items()}
    for name in ("stem/bias", BROKEN):
        large[name][1] = 1e6
    np.savez(published, **large)
    before = snapshot(published.parent)
    with pytest.raises(ConversionError, match="hold values of ") as caught:
        save(load(published, lazy=True).astype("float16"), published.with_name("x.npz"))
    assert BROKEN in str(caught.value)
    assert "stem/bias" in str(caught.value)
    target = published.with_name("x.npz")
    assert "would become infinite" in command("convert", published, target, "--dtype", "float16", status=2)
    assert snapshot(published.parent) == before


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["key", "disk"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".safetensors.index.json", ".msgpack"])
def test_an_interrupted_write_leaves_nothing(
    published: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, raised: BaseException
) -> None:
    target = published.with_name(f"x{suffix}")
    target.write_bytes(b"old")
    before, seen = snapshot(published.parent), []
    strided = LazyArrays.strided

    def failing(self: LazyArrays, name: str) -> np.ndarray:
        seen.append(name)
        if len(seen) == 100:
            raise raised
        return strided(self, name)

    monkeypatch.setattr(LazyArrays, "strided", failing)
    with pytest.raises(KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else CheckpointError):
        save(load(published, lazy=True), target, force=True)
    assert len(seen) >= 100
    assert snapshot(published.parent) == before


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".safetensors.index.json", ".orbax"])
def test_fsync_waits_for_all_that_is_renamed(published: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    log: list[tuple[str, str]] = []
    fsync, move = os.fsync, atomic.move
    ours = published.parent

    def logged_fsync(descriptor: int) -> None:
        log.append(("flushed", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_move(old: Path, new: Path, *, force: bool) -> None:
        if new.parent == ours:
            log.append(("renamed", str(old)))
        move(old, new, force=force)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(atomic, "move", logged_move)
    for arguments in ([], ["--fsync"]):
        log.clear()
        command("convert", published, ours / f"x{suffix}", "--force", *arguments)
        renamed = [path for what, path in log if what == "renamed"]
        assert renamed
        if arguments:
            before = log[: log.index(("renamed", renamed[-1]))]
            moved = [path for path in renamed if "/old/" not in path and not path.endswith(suffix)]
            assert {("flushed", path) for path in moved} <= {*before}
            assert log[-1] == ("flushed", str(ours))
        elif suffix != ".orbax":  # which does as it likes
            assert not [path for what, path in log if what == "flushed"]


# Memory

CONVERT = """
import json, sys
from pathlib import Path
import numpy as np
from mixer_equiv import MixerConfig, convert, load, save
from mixer_equiv.layouts import LINEN

folder, lazy, suffix = Path(sys.argv[1]), sys.argv[2] == "lazy", sys.argv[3]
source = folder / "source.npz"
save(convert(load(source, lazy=lazy), to="torch"), folder / f"{sys.argv[2]}{suffix}", force=True)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps(int(status["VmHWM"].split()[0]) * 1024))
"""

LARGEST = 4 * 2048 * 512
MiB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of 200 MB, the largest array of which has 4 MiB."""
    config = CONFIG.replace(hidden_dim=512, channels_mlp_dim=2048, tokens_mlp_dim=7, num_blocks=24)
    numbers = RNG.bytes(LARGEST)
    folder = tmp_path_factory.mktemp("large")
    shapes = {name: b.shape(config.axis_sizes) for name, b in LAYOUTS["linen"].bindings(config.num_blocks).items()}
    arrays = {name: np.frombuffer(numbers, np.float32, int(np.prod(s))).reshape(s) for name, s in shapes.items()}
    np.savez(folder / "source.npz", **arrays)
    assert (folder / "source.npz").stat().st_size > 200e6
    return folder


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".safetensors.index.json"])
def test_memory_does_not_grow_with_the_file(large: Path, suffix: str) -> None:
    """Python, NumPy and the like take 50 to 70 MB; three arrays and some pieces are to be all beyond that."""
    assert printed(CONVERT, large, "lazy", suffix) < 75 * MiB + 3 * LARGEST + 4 * CHUNK_BYTES


def test_the_measure_of_memory_sees_a_conversion_at_once(large: Path) -> None:
    assert printed(CONVERT, large, "eager", ".npz") > 300e6


# Mapped

MAPPABLE = [suffix for suffix in SUFFIXES if suffix != ".orbax"]


def _mapping_of(array: np.ndarray) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mapped_checkpoint_is_the_same_and_its_file_is_safe(tmp_path: Path, suffix: str) -> None:
    path = save(Checkpoint.from_arrays(PARAMS, config=CONFIG), tmp_path / f"mixer{suffix}")
    before = snapshot(tmp_path)
    mapped = load(path, mmap=True)
    assert changed(PARAMS, mapped.arrays) == []
    if suffix in MAPPABLE:
        assert all(_mapping_of(array) for array in mapped.arrays.values())
    for array in mapped.arrays.values():
        array += 1
    assert changed({name: array + 1 for name, array in PARAMS.items()}, mapped.arrays) == []
    assert snapshot(tmp_path) == before


@pytest.mark.filterwarnings("ignore::mixer_equiv.ConventionWarning")
@pytest.mark.parametrize("layout", WRITABLE)
def test_a_conversion_without_copies_has_the_same_numbers_in_the_same_memory(published: Path, layout: str) -> None:
    found = load(published, mmap=True, config=CONFIG)
    views, copies = convert(found, to=layout, copy=False), convert(found, to=layout)
    if isinstance(views, Checkpoint):
        assert changed(copies.arrays, views.arrays) == []
    ours = found.arrays["MixerBlock_3/channel_mixing/Dense_1/kernel"]
    name = LAYOUTS[layout].bindings(CONFIG.num_blocks)["MixerBlock_3/channel_mixing/Dense_1/kernel"].foreign
    assert np.shares_memory(views.arrays[name], ours)
    assert not np.shares_memory(copies.arrays[name], ours)


def test_tensors_share_the_mapping_where_they_are_aligned(tmp_path: Path) -> None:
    path = save(Checkpoint.from_arrays(PARAMS, config=CONFIG), tmp_path / "mixer.safetensors")
    for source, aligned in ((path, True), (_misaligned(tmp_path), False)):
        state = convert(load(source, mmap=True), to="torch", copy=False)
        array = state.arrays["blocks.3.channel_mixing.dense_1.weight"]
        tensor = state["blocks.3.channel_mixing.dense_1.weight"]
        assert array.flags.aligned == aligned
        assert tensor.data_ptr() % array.itemsize == 0
        assert np.shares_memory(tensor.numpy(), array) == aligned
        np.testing.assert_array_equal(tensor.numpy(), array)


def _misaligned(folder: Path) -> Path:
    """An npz whose arrays all begin one byte after a multiple of 8."""
    save(Checkpoint.from_arrays(PARAMS, config=CONFIG), folder / "x.npz")
    with zipfile.ZipFile(folder / "x.npz") as old, zipfile.ZipFile(folder / "misaligned.npz", "w") as new:
        for info in old.infolist():
            moved = zipfile.ZipInfo(info.filename)
            empty = -(new.fp.tell() + 30 + len(info.filename) + 4 - 1) % 8
            moved.extra = struct.pack("<HH", 0xFFFF, empty) + bytes(empty)
            new.writestr(moved, old.read(info))
        new.comment = old.comment
    return folder / "misaligned.npz"


def test_read_only_arrays_become_tensors_of_their_own() -> None:
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    to_torch(array)[0, 0] = 7
    assert array[0, 0] == 0


def test_a_mapped_model_computes_and_trains_and_leaves_the_file_alone(tmp_path: Path) -> None:
    save(Checkpoint.from_arrays(PARAMS, config=CONFIG), tmp_path / "mixer.safetensors")
    before = snapshot(tmp_path)
    state = convert(load(tmp_path / "mixer.safetensors", mmap=True), to="torch", copy=False)
    with torch.device("meta"):
        model = MlpMixer(state.config)
    model.load_state_dict(state, strict=True, assign=True)
    weight = model.blocks[3].channel_mixing.dense_1.weight
    assert np.shares_memory(weight.detach().numpy(), state.arrays["blocks.3.channel_mixing.dense_1.weight"])
    plain = MlpMixer(state.config).double()
    plain.load_state_dict(convert(load(tmp_path / "mixer.safetensors"), to="torch"), strict=True)
    images = torch.from_numpy(RNG.normal(size=(2, CONFIG.in_channels, *CONFIG.image_hw)))
    for each_model in (model, plain):
        optimiser = torch.optim.SGD(each_model.parameters(), lr=0.1)
        each_model(images).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(model(images), plain(images), rtol=1e-12, atol=1e-12)
    assert snapshot(tmp_path) == before


def test_nothing_made_is_kept_by_what_is_lazy(published: Path) -> None:
    state = convert(load(published, lazy=True), to="torch")
    first, second = (dict(prefetch_arrays(state.arrays)) for _ in range(2))
    assert changed(first, second) == []
    assert not any(np.shares_memory(first[name], second[name]) for name in first)


def test_flush_tells_what_cannot_be_flushed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.flush(tmp_path / "missing")
