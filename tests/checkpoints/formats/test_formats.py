"""File formats: others read what we write and we read what they write, bit for bit, and only what is asked for."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack as msgpack_library
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import torch
from flax import nnx, serialization
from flax.training import checkpoints
from flax.training.train_state import TrainState
from safetensors.numpy import load_file, save_file

from mixer_equiv import CheckpointError
from mixer_equiv.arrays.interop import flatten, to_numpy, unflatten
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import SUFFIXES, atomic, format_by_suffix, is_replaceable, msgpack, orbax, sharded
from mixer_equiv.checkpoints.formats.sharded import parse_size, write_sharded
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed, files_no_larger_than, snapshot
from tests.support.scripts import BLOCKED, printed, python

METADATA = json.dumps({"layout": "linen"})

# A tree of no Mixer, with dotted names beside nested ones, and of every size that has no number to spare.
TREE: dict[str, Any] = {
    "stem": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.full(3, -0.0, np.float32)},
    "blocks.0.norm.weight": np.array([np.nan, -np.inf, 5e-324]),
    "scale": np.array(-0.0, np.float16),
}


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays that stand at `path`, by flat names."""
    return {name: to_numpy(name, leaf) for name, leaf in flatten(formats.read(path).arrays)}


def write(path: Path, arrays: Mapping[str, Any], framework: Any = "flax") -> Path:
    format_by_suffix(path).write(path, dict(flatten(arrays)), METADATA, framework)
    return path


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(tree)}


def train_state(params: Mapping[str, Any]) -> TrainState:
    return TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))


def params(step: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {"stem": {"kernel": rng.normal(size=(3, 5)).astype(np.float32), "bias": rng.normal(size=5)}}


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(3, 5, rngs=rngs)
        self.blocks = nnx.List([nnx.LayerNorm(5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])
        self.value = nnx.Linear(5, 7, rngs=rngs)


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("framework", ["flax", "torch"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_is_bit_exact(tmp_path: Path, suffix: str, framework: str, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    if framework == "torch":
        arrays = {name.replace("/", "."): array for name, array in arrays.items()}
    path = write(tmp_path / f"mixer{suffix}", arrays, framework)
    assert changed(arrays, read(path)) == []
    assert formats.read(path).metadata == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shapes_and_dtypes_are_known_before_the_numbers(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mixer{suffix}", TREE)
    leaves = dict(flatten(formats.read(path).arrays))
    assert all(isinstance(leaf, formats.StoredArray) for leaf in leaves.values())
    for name, array in flat(TREE).items():
        assert (leaves[name].shape, leaves[name].dtype) == (array.shape, array.dtype)
        assert changed({name: array}, {name: np.asarray(leaves[name])}) == []


@pytest.mark.parametrize("suffix", [".msgpack", ".orbax", ".safetensors.index.json", ".pt"])
def test_content_tells_the_format_whatever_the_name(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mixer{suffix}", TREE).rename(tmp_path / "renamed.ckpt")
    assert changed(flat(TREE), read(path)) == []


def _recognised(path: Path) -> list[str]:
    return [file_format.name for file_format in formats.FORMATS if file_format.recognise(path)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_format_takes_the_files_of_another(tmp_path: Path, suffix: str) -> None:
    assert _recognised(write(tmp_path / f"mixer{suffix}", TREE)) == [format_by_suffix(Path(suffix)).name]


@pytest.mark.parametrize("length", [0xA384, 0x7B81A3, 0xA183])
def test_a_safetensors_header_that_begins_like_msgpack_is_none(tmp_path: Path, length: int) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + header + b"1234")
    assert _recognised(tmp_path / "x") == ["safetensors"]


def test_msgpack_with_a_brace_where_safetensors_has_one_is_read(tmp_path: Path) -> None:
    data = serialization.msgpack_serialize({"epochs": 123, "params": params()})
    assert data[8:9] == b"{"
    (tmp_path / "x").write_bytes(data)
    assert _recognised(tmp_path / "x") == ["msgpack"]


NO_MSGPACK = [
    b"",
    b"\x80",
    b"\x81",
    b"\x81\xa1\x00\x00",
    b"\x81\x01\x02",
    b"\x89HDF\r\n\x1a\n",
    b"{}",
    b"\x80\x02}q\x00.",
]


@pytest.mark.parametrize(
    "content", [*NO_MSGPACK, b"\xde\xff\xff\xdb\xff\xff\xff\xff", "Þ text".encode("latin-1")], ids=repr
)
def test_files_that_begin_otherwise_are_of_no_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert _recognised(tmp_path / "x") == []


# Flax's msgpack


@pytest.mark.parametrize("dtype", DTYPES)
def test_flax_restores_just_the_tree_that_was_written(tmp_path: Path, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    tree = serialization.msgpack_restore(write(tmp_path / "mixer.msgpack", arrays).read_bytes())
    assert list(dict(flatten(tree))) == list(arrays)
    assert changed(arrays, dict(flatten(tree))) == []
    target = unflatten({name: np.zeros_like(array) for name, array in arrays.items()})
    restored = serialization.from_bytes(target, (tmp_path / "mixer.msgpack").read_bytes())
    assert changed(arrays, dict(flatten(restored))) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_flax_wrote_is_read(tmp_path: Path, dtype: str) -> None:
    arrays = arbitrary_bits(dtype)
    (tmp_path / "mixer.msgpack").write_bytes(serialization.to_bytes(unflatten(arrays)))
    assert changed(arrays, read(tmp_path / "mixer.msgpack")) == []
    assert formats.read(tmp_path / "mixer.msgpack").metadata is None


def test_a_train_state_that_flax_wrote_is_read(tmp_path: Path) -> None:
    state = train_state(params())
    (tmp_path / "state.msgpack").write_bytes(serialization.to_bytes(state))
    assert changed(flat(serialization.to_state_dict(state)), read(tmp_path / "state.msgpack")) == []


def test_every_kind_of_value_that_flax_writes_is_read(tmp_path: Path) -> None:
    numbers = [0, 127, 128, 2**16, 2**32, 2**63, -1, -32, -33, -129, -(2**15) - 1, -(2**31) - 1, 1.5]
    others = [None, True, False, "é" * 40, "x" * 300, "y" * 70000, 1 + 2j]
    tree = {
        "numbers": numbers,
        "others": others,
        "scalar": np.float64(-0.0),
        "many": dict.fromkeys(map(str, range(99)), 1),
    }
    (tmp_path / "x").write_bytes(serialization.msgpack_serialize(tree | {"steps": {0: np.int32(7)}, "none": {}}))
    found = dict(formats.read(tmp_path / "x").arrays)
    assert (found["numbers"], found["others"]) == tuple(
        {str(i): value for i, value in enumerate(values)} for values in (numbers, others)
    )
    assert np.asarray(found["scalar"]).tobytes() == np.float64(-0.0).tobytes()
    assert (len(found["many"]), int(np.asarray(found["steps"]["0"])), found["none"]) == (99, 7, {})


@pytest.mark.parametrize("limit", [8, 60, 64, 1000])
def test_chunks_are_joined_and_cut_as_flax_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(msgpack, "MAX_CHUNK_SIZE", limit)
    arrays = {name: array[..., :1] if array.ndim == 4 else array for name, array in arbitrary_bits("bfloat16").items()}
    arrays["scale"] = np.array(-0.0)
    (tmp_path / "theirs.msgpack").write_bytes(serialization.msgpack_serialize(unflatten(arrays)))
    assert changed(arrays, read(tmp_path / "theirs.msgpack")) == []
    ours = write(tmp_path / "ours.msgpack", arrays)
    assert changed(arrays, dict(flatten(serialization.msgpack_restore(ours.read_bytes())))) == []
    assert changed(arrays, read(ours)) == []


def _extension(shape: Any, dtype: str, data: bytes, code: int = 1) -> bytes:
    payload = msgpack_library.packb((shape, dtype, data))
    return b"\x81\xa1x" + msgpack_library.packb(msgpack_library.ExtType(code, payload))


NESTED = b"\x81\xa1x" * 5000 + b"\x01"
BAD_MSGPACK: dict[str, tuple[bytes, str]] = {
    "more numbers declared": (_extension((4,), "float32", b"12345678"), r"declares \(4,\) of float32 and holds 8"),
    "fewer numbers declared": (_extension((1,), "float32", b"12345678"), r"declares \(1,\) of float32 and holds 8"),
    "huge array": (_extension((2**40, 2**40), "float32", b"1234"), "declares"),
    "negative sides": (_extension((-1, -2), "float32", b"12345678"), "declares"),
    "sides that are text": (_extension(("2",), "float32", b"12345678"), "declares"),
    "objects": (_extension((1,), "object", b"12345678"), "declares"),
    "no dtype": (_extension((1,), "nonsense", b"12345678"), "nonsense"),
    "unknown extension": (_extension((1,), "float32", b"1234", 7), "extension of type 7"),
    "extension of less": (b"\x81\xa1x\xd5\x02\x90\x00", "an extension of 2 bytes has another length"),
    "extension of more": (b"\x81\xa1x\xd4\x02\x92\x01\x01", "an extension of 1 bytes has another length"),
    "complex number of one part": (b"\x81\xa1x\xd6\x02\x93\x01\x01\x01", "not a checkpoint"),
    "key twice": (b"\x82\xa1x\x01\xa1x\x02", "the key 'x' is there twice"),
    "number and text for a key": (b"\x83\xa1x\x01\x07\x01\xa17\x02", "the key '7' is there twice"),
    "key that is none": (b"\x82\xa1x\x01\xc0\x02", "a key is a NoneType"),
    "byte without a meaning": (b"\x81\xa1x\xc1", "no value begins with the byte 0xc1"),
    "trailing bytes": (b"\x81\xa1x\x01\x01", "goes on for 1 bytes after the end"),
    "nested without end": (NESTED, "nested more than 100 deep"),
    "text beyond the end": (b"\x81\xa1x\xdb\xff\xff\xff\xff12", "a text of length 4294967295 is declared where"),
    "map beyond the end": (b"\x81\xa1x\xdf\xff\xff\xff\xff", "a map of length 4294967295 is declared where"),
    "list beyond the end": (b"\x81\xa1x\xdd\xff\xff\xff\xff", "a list of length"),
    "extension beyond the end": (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", "an? extension of length"),
    "text that is no UTF-8": (b"\x81\xa1x\xa1\xff", "UnicodeDecodeError"),
    "chunks without a shape": (serialization.msgpack_serialize({"x": {"__msgpack_chunked_array__": True}}), "shape"),
    "chunks that do not fill the shape": (
        serialization.msgpack_serialize(
            {"x": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {"0": np.ones(2)}}}
        ),
        r"declares \(3,\) and has 2 numbers in 1 chunks",
    ),
    "a list": (b"\x91\x01", "holds a list; expected a map of arrays by name"),
    "a number": (b"\x01", "holds a value; expected a map of arrays by name"),
    "an array": (serialization.msgpack_serialize(np.ones(3)), "holds an? extension; expected a map of arrays by name"),
}


@pytest.mark.parametrize("fault", BAD_MSGPACK)
def test_damaged_msgpack_is_refused_in_words(tmp_path: Path, fault: str) -> None:
    content, fragment = BAD_MSGPACK[fault]
    (tmp_path / "bad.msgpack").write_bytes(content)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        read(tmp_path / "bad.msgpack")
    assert "bad.msgpack" in str(caught.value)


@pytest.mark.parametrize("writer", ["flax", "ours"])
def test_truncated_msgpack_is_refused_wherever_it_ends(tmp_path: Path, writer: str) -> None:
    path = write(tmp_path / "x.msgpack", arbitrary_bits("float16"))
    whole = path.read_bytes() if writer == "ours" else serialization.to_bytes(train_state(params()))
    ends = {*range(10), *np.linspace(10, len(whole) - 1, 40, dtype=int).tolist()}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            formats.read(path)


# Orbax


def _standard(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def _pytree(path: Path, tree: Any, **options: Any) -> None:
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, args=ocp.args.PyTreeSave(tree))


def _steps(path: Path, tree: Any, prefix: str | None = None) -> None:
    with ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(step_prefix=prefix)) as manager:
        for step in (2, 9, 10):
            manager.save(step, args=ocp.args.StandardSave(tree if step == 10 else params(step)))


def _latest_step(path: Path, tree: Any) -> None:
    _steps(path.with_name("steps"), tree)
    (path.with_name("steps") / "10").rename(path)


def _flax_checkpoints(path: Path, tree: Any) -> None:
    for step in (2, 10):
        checkpoints.save_checkpoint(path, tree if step == 10 else params(step), step, keep=5)


ORBAX_WRITERS: dict[str, Callable[[Path, Any], None]] = {
    "PyTreeCheckpointer": _pytree,
    "StandardCheckpointer": _standard,
    "without OCDBT": lambda path, tree: _pytree(path, tree, use_ocdbt=False),
    "zarr 3": lambda path, tree: _pytree(path, tree, use_zarr3=True),
    "CheckpointManager": _steps,
    "CheckpointManager with a prefix": lambda path, tree: _steps(path, tree, "checkpoint"),
    "one step": _latest_step,
    "flax.training.checkpoints": _flax_checkpoints,
}


@pytest.mark.parametrize("name", ["mixer", "run_3", "7"])
@pytest.mark.parametrize("writer", ORBAX_WRITERS)
def test_what_orbax_wrote_is_read(tmp_path: Path, writer: str, name: str) -> None:
    ORBAX_WRITERS[writer](tmp_path / name, params())
    assert changed(flat(params()), read(tmp_path / name)) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("writer", ["PyTreeCheckpointer", "StandardCheckpointer", "without OCDBT", "zarr 3"])
def test_special_values_that_orbax_wrote_keep_their_bits(tmp_path: Path, writer: str, dtype: str) -> None:
    fills = {"zero": 0.0, "minus zero": -0.0, "infinite": -np.inf, "nan": np.nan}
    arrays: dict[str, Any] = {name: np.full((3, 5), fill, dtype) for name, fill in fills.items()}
    arrays |= {"payload": np.full(7, np.nan, dtype), "any": arbitrary_bits(dtype)["stem/kernel"]}
    arrays["payload"].view(np.uint8)[:] |= np.uint8(1)
    ORBAX_WRITERS[writer](tmp_path / "x", arrays)
    assert changed(arrays, read(tmp_path / "x")) == []


@pytest.mark.parametrize("restore", [ocp.PyTreeCheckpointer, ocp.StandardCheckpointer])
@pytest.mark.parametrize("dtype", DTYPES)
def test_orbax_restores_just_the_tree_that_was_written(tmp_path: Path, dtype: str, restore: Any) -> None:
    arrays = arbitrary_bits(dtype) | {"minus zero": np.full((3, 5), -0.0, dtype), "head.scale": np.zeros(3, dtype)}
    path = write(tmp_path / "mixer.orbax", arrays)
    assert changed(arrays, flat(restore().restore(path))) == []


@pytest.mark.parametrize("writer", ["PyTreeCheckpointer", "StandardCheckpointer", "CheckpointManager"])
def test_a_train_state_that_orbax_wrote_is_read(tmp_path: Path, writer: str) -> None:
    state = train_state(params())
    ORBAX_WRITERS[writer](tmp_path / "x", state)
    assert changed(flat(serialization.to_state_dict(state)), read(tmp_path / "x")) == []


@pytest.mark.parametrize("writer", ["StandardCheckpointer", "PyTreeCheckpointer", "CheckpointManager"])
def test_names_of_nnx_lose_the_key_around_every_array(tmp_path: Path, writer: str) -> None:
    state = nnx.state(Model())
    ORBAX_WRITERS[writer](tmp_path / "x", state)
    assert changed(flat(nnx.to_pure_dict(state)), read(tmp_path / "x")) == []
    assert "value/kernel" in read(tmp_path / "x")


def test_an_array_called_value_among_others_keeps_its_name(tmp_path: Path) -> None:
    tree = {"a": {"value": np.ones(3), "scale": np.ones(5)}, "b": {"value": np.ones(2), "c": {"d": np.ones(7)}}}
    _pytree(tmp_path / "x", tree | {"value": np.zeros(3)})
    assert sorted(read(tmp_path / "x")) == ["a/scale", "a/value", "b/c/d", "b/value", "value"]


def test_lists_and_leaves_that_are_no_arrays(tmp_path: Path) -> None:
    tree = {"list": [np.ones(2), {"x": np.zeros(3)}, None], "tuple": (np.ones(5),), "none": None, "empty": {}}
    _pytree(tmp_path / "x", tree | {"step": 3, "name": "text"})
    found = read(tmp_path / "x")
    assert sorted(found) == ["list/0", "list/1/x", "step", "tuple/0"]
    assert found["step"] == 3


def _two_items(path: Path) -> None:
    items = {"params": ocp.args.StandardSave(params()), "opt": ocp.args.PyTreeSave({"mu": jnp.ones(2)})}
    with ocp.CheckpointManager(path) as manager:
        manager.save(0, args=ocp.args.Composite(**items, notes=ocp.args.JsonSave({"a": 1})))


def test_items_of_a_step_are_nested_by_their_names(tmp_path: Path) -> None:
    _two_items(tmp_path / "x")
    assert sorted(read(tmp_path / "x")) == ["opt/mu", "params/stem/bias", "params/stem/kernel"]
    shutil.rmtree(tmp_path / "x" / "0" / "opt")
    assert sorted(read(tmp_path / "x" / "0")) == ["stem/bias", "stem/kernel"]


def _uncommitted(step: Path) -> None:
    content = json.loads((step / "_CHECKPOINT_METADATA").read_text())
    (step / "_CHECKPOINT_METADATA").write_text(json.dumps(content | {"commit_timestamp_nsecs": None}))


INTERRUPTED: dict[str, Callable[[Path], Any]] = {
    "still called temporary": lambda step: step.rename(f"{step}.orbax-checkpoint-tmp-1700000000"),
    "without a time of its end": _uncommitted,
    "without its item": lambda step: shutil.rmtree(step / "default"),
    "without what the item holds": lambda step: (step / "default" / "_METADATA").unlink(),
    "with half of what the item holds": lambda step: (step / "default" / "_METADATA").write_text('{"tree_meta'),
}


@pytest.mark.parametrize("fault", INTERRUPTED)
def test_a_step_that_was_interrupted_is_passed_over(tmp_path: Path, fault: str) -> None:
    _steps(tmp_path / "x", params())
    INTERRUPTED[fault](tmp_path / "x" / "10")
    assert changed(flat(params(9)), read(tmp_path / "x")) == []


BAD_ORBAX: dict[str, Callable[[Path], Any]] = {
    "no numbers": lambda path: shutil.rmtree(path / "d"),
    "no manifest": lambda path: (path / "manifest.ocdbt").unlink(),
    "half a manifest": lambda path: os.truncate(path / "manifest.ocdbt", 50),
    "no tree": lambda path: (path / "_METADATA").write_text('{"tree_metadata": {}}'),
    "another tree": lambda path: (path / "_METADATA").write_text('{"tree_metadata": {"x": 3}}'),
}


@pytest.mark.parametrize("fault", BAD_ORBAX)
def test_damaged_orbax_is_refused_in_words(tmp_path: Path, fault: str) -> None:
    write(tmp_path / "bad.orbax", arbitrary_bits("float32"))
    BAD_ORBAX[fault](tmp_path / "bad.orbax")
    with pytest.raises(CheckpointError, match=r"bad\.orbax cannot be read: it is damaged or not a checkpoint"):
        read(tmp_path / "bad.orbax")


@pytest.mark.parametrize("left", [0, 1, 40])
def test_half_of_the_tree_s_metadata_is_damage_and_not_some_directory(tmp_path: Path, left: int) -> None:
    file = write(tmp_path / "x.orbax", params()) / "_METADATA"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"x\.orbax is no Orbax checkpoint; its _METADATA is damaged"):
        formats.read(tmp_path / "x.orbax")


def test_a_file_is_no_orbax_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.orbax").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"x\.orbax is no Orbax checkpoint; expected a directory"):
        formats.read(tmp_path / "x.orbax")


def test_only_neighbours_are_restored_with_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = []
    real = orbax._restore
    monkeypatch.setattr(orbax, "RESTORED_AT_ONCE", 50)
    monkeypatch.setattr(orbax, "_restore", lambda *args: restored.append(sorted(args[-1])) or real(*args))
    tree = {f"x{i}": np.full(3, i, np.float64) for i in range(5)}
    arrays = formats.read(write(tmp_path / "x.orbax", tree)).arrays
    assert restored == []
    for name in ("x0", "x1", "x3", "x2", "x4"):
        np.testing.assert_array_equal(np.asarray(arrays[name]), tree[name])
    assert restored == [[0, 1], [2, 3], [4]]


def test_an_array_that_was_read_can_be_written_to_without_harm(tmp_path: Path) -> None:
    array = formats.read(write(tmp_path / "x.orbax", params())).arrays["stem"]["bias"]
    np.asarray(array)[:] = 7
    assert changed({"": params()["stem"]["bias"]}, {"": np.asarray(array)}) == []


ON_EIGHT_DEVICES = """
import json, sys, jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
array = jax.device_put(np.arange(32, dtype=np.float32).reshape(8, 4), NamedSharding(mesh, PartitionSpec("a", "b")))
ocp.PyTreeCheckpointer().save(sys.argv[1], {"x": array})
print(json.dumps(len(jax.devices())))
"""


def test_arrays_of_devices_that_are_not_here_are_read(tmp_path: Path) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    assert printed(ON_EIGHT_DEVICES, tmp_path / "x", **flags) == 8
    assert len(jax.devices()) == 1
    assert changed({"x": np.arange(32, dtype=np.float32).reshape(8, 4)}, read(tmp_path / "x")) == []


def test_orbax_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    _two_items(tmp_path / "x")
    caplog.clear()
    capfd.readouterr()
    read(tmp_path / "x")
    read(write(tmp_path / "y.orbax", params()))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelname not in ("INFO", "DEBUG")] == []


FULL_DISK = """
import json, resource, sys
from pathlib import Path
import numpy as np
from mixer_equiv.checkpoints.formats import format_by_suffix
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    path = Path(sys.argv[1])
    format_by_suffix(path).write(path, {f"x{i}": np.random.rand(99, 7) for i in range(99)}, "{}", "flax")
except OSError as error:
    print(json.dumps([str(error), [str(path) for path in path.parent.iterdir()]]))
"""


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    finished = python(FULL_DISK, tmp_path / "x.orbax")
    message, left = json.loads(finished.stdout)
    assert "Failed writing" in message
    assert left == []
    assert finished.stderr == ""


def test_only_a_tree_of_orbax_is_a_directory_that_may_be_replaced(tmp_path: Path) -> None:
    file_format = format_by_suffix(Path("x.orbax"))
    write(tmp_path / "x.orbax", params())
    _steps(tmp_path / "steps", params())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "_METADATA").write_text("{}")
    (tmp_path / "file").touch()
    assert [path.name for path in tmp_path.iterdir() if is_replaceable(path, file_format)] == ["x.orbax"]
    assert [path.name for path in tmp_path.iterdir() if is_replaceable(path, format_by_suffix(Path("x.npz")))] == [
        "file"
    ]


# Shards


def _arrays() -> dict[str, np.ndarray]:
    """Of 40, 400, 80, 48 and 8 bytes."""
    rng = np.random.default_rng(3)
    return {f"x{i}": rng.normal(size=size) for i, size in enumerate((5, 50, 10, 6, 1))}


def _shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _sharded(path: Path, size: int = 100, *, force: bool = False, arrays: Any = None) -> Path:
    return write_sharded(path, _arrays() if arrays is None else arrays, METADATA, "torch", size, force=force)


SHARDS = {1: ["x0"], 2: ["x1"], 3: ["x2"], 4: ["x3", "x4"]}
FILES = {f"model-{i:05d}-of-00004.safetensors": names for i, names in SHARDS.items()}
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("name", ["model.safetensors", INDEX])
def test_shards_are_filled_in_order_up_to_their_size(tmp_path: Path, name: str) -> None:
    assert _sharded(tmp_path / name) == tmp_path / INDEX
    assert _shards(tmp_path) == sorted([*FILES, INDEX])
    for file, names in FILES.items():
        assert changed({name: _arrays()[name] for name in names}, load_file(tmp_path / file)) == []
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 72 * 8, "mixer_equiv": METADATA}
    assert index["weight_map"] == {name: file for file, names in FILES.items() for name in names}
    assert changed(_arrays(), read(tmp_path / INDEX)) == []


def test_what_fits_in_one_file_is_one_unless_an_index_is_asked_for(tmp_path: Path) -> None:
    assert _sharded(tmp_path / "model.safetensors", 1000) == tmp_path / "model.safetensors"
    assert _shards(tmp_path) == ["model.safetensors"]
    assert changed(_arrays(), load_file(tmp_path / "model.safetensors")) == []
    assert _sharded(tmp_path / INDEX, 1000, force=True) == tmp_path / INDEX
    assert _shards(tmp_path) == ["model-00001-of-00001.safetensors", INDEX]


def _hub_folder(folder: Path, *, sharded: bool) -> None:
    """As it is downloaded, by the safetensors library alone."""
    files = FILES if sharded else {"model.safetensors": list(_arrays())}
    for file, names in files.items():
        save_file({name: _arrays()[name] for name in names}, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    if sharded:
        weight_map = {name: file for file, names in files.items() for name in names}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 576}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [True, False])
def test_a_downloaded_folder_is_read(tmp_path: Path, sharded: bool) -> None:
    _hub_folder(tmp_path, sharded=sharded)
    assert changed(_arrays(), read(tmp_path)) == []
    assert formats.read(tmp_path).metadata is None


def test_an_index_of_any_name_is_read(tmp_path: Path) -> None:
    _hub_folder(tmp_path, sharded=True)
    assert changed(_arrays(), read((tmp_path / INDEX).rename(tmp_path / "renamed.txt"))) == []


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] |= changes
        index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard is not None}
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def _remove(*shards: int) -> Callable[[Path], None]:
    return lambda folder: [(folder / list(FILES)[i - 1]).unlink() for i in shards] and None


def _index(content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / INDEX).write_text(content)


FIRST, SECOND = list(FILES)[:2]
BAD_SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (_remove(2), f"names shards that are missing: {SECOND}; put them beside it"),
    "two are missing": (_remove(1, 2), f"missing: {FIRST}, {SECOND}; put"),
    "an array is missing": (_edit(y=FIRST), f"names arrays that their shards do not hold: y in {FIRST}; the index is"),
    "many are missing": (
        _edit(**{f"y{i}": FIRST for i in range(9)}),
        f"do not hold: {', '.join(f'y{i} in {FIRST}' for i in range(4))} and 5 more; ",
    ),
    "an array is elsewhere": (_edit(x0=SECOND), f"do not hold: x0 in {SECOND}; "),
    "an array is not named": (_edit(x3=None), "does not name arrays that its shards hold: x3 in model-00004-of-00004"),
    "shards are above": (_edit(x0=f"../{FIRST}"), rf"names files outside its folder: \.\./{FIRST}; shards must"),
    "shards are below": (_edit(x0=f"sub/{FIRST}", x1="sub\\y"), r"outside its folder: sub/.*, sub\\y; "),
    "shards are anywhere": (_edit(x0="/etc/passwd", x1=".."), r"outside its folder: \.\., /etc/passwd; "),
    "shards are pickles": (_edit(x0="pytorch_model.bin"), "shards that are not safetensors: pytorch_model.bin; "),
    "the index is text": (_index("hello"), r"is not JSON \(.*\); expected"),
    "the index is empty": (_index(""), r"is not JSON \(.*\); expected"),
    "the index is a list": (_index("[1]"), "has no weight_map of names to files; expected"),
    "the map is empty": (_index('{"weight_map": {}}'), "has an empty weight_map, so it names no arrays; expected"),
    "the index has no map": (_index('{"metadata": {}}'), "has no weight_map of names to files; expected"),
    "the map is a list": (_index('{"weight_map": ["x"]}'), "has no weight_map of names to files; expected"),
    "the map has numbers": (_index('{"weight_map": {"x": 3}}'), "has no weight_map of names to files; expected"),
    "a shard is junk": (lambda folder: (folder / SECOND).write_bytes(b"junk"), "SafetensorError"),
    "a shard is cut": (lambda folder: os.truncate(folder / SECOND, 300), "SafetensorError"),
}


@pytest.mark.parametrize("fault", BAD_SHARDS)
def test_shards_that_do_not_fit_their_index_are_refused_in_words(tmp_path: Path, fault: str) -> None:
    plant, fragment = BAD_SHARDS[fault]
    _hub_folder(tmp_path, sharded=True)
    plant(tmp_path)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        formats.read(tmp_path / INDEX)
    assert INDEX in str(caught.value)
    assert "\n" not in str(caught.value)


FOLDERS: dict[str, tuple[list[str], str]] = {
    "two indices": (["a.safetensors.index.json", "b.safetensors.index.json"], r"holds 2 checkpoints \(a\..*, b\..*\)"),
    "an index and a file": (
        ["a.safetensors", "a.safetensors.index.json"],
        r"holds 2 checkpoints \(a\.safetensors\.index\.json, a\.safetensors\)",
    ),
    "shards alone": (
        ["a-00001-of-00002.safetensors"],
        r"holds shards \(a-00001-of-00002\.safetensors\) without their index",
    ),
    "two files": (["a.safetensors", "b.safetensors"], r"holds 2 checkpoints \(a\.safetensors, b\.safetensors\); give"),
    "neither": (["model.safetensors.md"], "holds no safetensors file; give the path of a checkpoint"),
    "nothing": ([], "is a directory; a checkpoint is a file .*, a directory of Orbax or a folder with safetensors"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_not_just_one_checkpoint_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    names, fragment = FOLDERS[kind]
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=fragment):
        formats.read(tmp_path)


EXISTING = ["model.safetensors", INDEX, "model-00001-of-00004.safetensors", "model-00001-of-00009.safetensors"]


@pytest.mark.parametrize("existing", EXISTING)
@pytest.mark.parametrize("target", ["model.safetensors", INDEX])
def test_existing_files_of_the_checkpoint_are_kept(tmp_path: Path, target: str, existing: str) -> None:
    (tmp_path / existing).write_bytes(b"old")
    with pytest.raises(CheckpointError, match=rf"{existing} exists; pass force=True \(--force\)"):
        _sharded(tmp_path / target)
    assert snapshot(tmp_path) == {str(tmp_path / existing): b"old"}


@pytest.mark.parametrize("size", [1000, 200, 100])
@pytest.mark.parametrize("target", ["model.safetensors", INDEX])
def test_force_leaves_no_file_of_the_old_checkpoint(tmp_path: Path, target: str, size: int) -> None:
    for old in (50, 1000):
        _sharded(tmp_path / target, old, force=True, arrays=_arrays() | {"y": np.ones(9)})
        (tmp_path / "other-00001-of-00002.safetensors").write_bytes(b"kept")
        path = _sharded(tmp_path / target, size, force=True)
        assert changed(_arrays(), read(path)) == []
        index = json.loads(path.read_text())["weight_map"].values() if path.name == INDEX else []
        assert _shards(tmp_path) == sorted({*index, path.name, "other-00001-of-00002.safetensors"})


def test_force_removes_nothing_that_an_index_names_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "other.safetensors").write_bytes(b"kept")
    (tmp_path / "x" / INDEX).write_text(json.dumps({"weight_map": {"x": "../other.safetensors", "y": ".."}}))
    _sharded(tmp_path / "x" / INDEX, force=True)
    assert (tmp_path / "other.safetensors").read_bytes() == b"kept"


def test_a_folder_in_the_way_is_kept_even_with_force(tmp_path: Path) -> None:
    (tmp_path / FIRST).mkdir()
    with pytest.raises(CheckpointError, match=f"{FIRST} is a directory where a file has to go"):
        _sharded(tmp_path / INDEX, force=True)
    assert _shards(tmp_path) == [FIRST]


# Eight files of the old checkpoint are put aside, and five new ones are moved in.
MOVES = 13


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "key"])
@pytest.mark.parametrize("failing", range(MOVES))
def test_a_failure_at_any_move_keeps_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, raised: BaseException
) -> None:
    _sharded(tmp_path / INDEX, 8, arrays={f"x{i}": np.ones(1) for i in range(7)})
    before, moved, put = snapshot(tmp_path), [], atomic.move

    def failing_put(source: Path, target: Path, *, force: bool) -> None:
        moved.append(target)
        if len(moved) == failing + 1:
            raise raised
        put(source, target, force=force)

    monkeypatch.setattr(atomic, "move", failing_put)
    with pytest.raises(CheckpointError if isinstance(raised, OSError) else KeyboardInterrupt):
        _sharded(tmp_path / INDEX, force=True)
    assert snapshot(tmp_path) == before
    moved.clear()
    monkeypatch.setattr(atomic, "move", lambda *paths, force: (moved.append(paths[1]), put(*paths, force=force)))
    _sharded(tmp_path / INDEX, force=True)
    assert (len(moved), moved[-1]) == (MOVES, tmp_path / INDEX)


def test_what_was_put_aside_is_kept_and_named_where_it_cannot_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sharded(tmp_path / INDEX, 8, arrays={f"x{i}": np.ones(1) for i in range(7)})
    old, replace = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, os.replace

    def failing(source: Path, target: Path) -> None:
        if source.parent.name == "old" or target.name == INDEX:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        _sharded(tmp_path / INDEX, force=True)
    (aside,) = tmp_path.glob(".*.tmp/old")
    kept = {path.name: path.read_bytes() for path in [*aside.iterdir(), *tmp_path.iterdir()] if path.is_file()}
    assert kept == old
    with pytest.raises(CheckpointError, match=f"put aside, are in {aside}"):
        formats.read(tmp_path)


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    arrays = {"x": np.ones(3), "y": np.ones(100_000)}
    with files_no_larger_than(20_000), pytest.raises(CheckpointError, match=r"model.*cannot be written"):
        _sharded(tmp_path / INDEX, arrays=arrays)
    assert _shards(tmp_path) == []


def test_where_no_file_can_be_made_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        _sharded(tmp_path / "missing" / INDEX)
    with pytest.raises(CheckpointError, match=r"x\.npz cannot be sharded; give a name that ends with \.safetensors"):
        _sharded(tmp_path / "x.npz")


SIZES = {"5GB": 5 * 10**9, "100MB": 10**8, "2GiB": 2**31, "1.5 kB".replace("k", "K"): 1500, "17": 17, "3B": 3}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_decimal_unless_they_say_otherwise(size: str) -> None:
    assert parse_size(size) == SIZES[size]
    assert parse_size(SIZES[size]) == SIZES[size]


@pytest.mark.parametrize("size", ["", "GB", "5 apples", "-5GB", "0", "0.1B", "5gb", "5Gb", "1e9", "5GB 3MB", 0, -1])
def test_what_is_no_size_is_refused_in_words(size: Any) -> None:
    with pytest.raises(CheckpointError, match="expected bytes, or a size such as 5GB, 100MB or 2GiB"):
        parse_size(size)


# torch


def _tensors() -> dict[str, Any]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    shared = torch.full((3,), -0.0)
    return {
        "strided": base[1:, ::2].T,
        "tied": shared,
        "tied too": shared,
        "bfloat16": base.bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[0]),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_tensors_of_any_form_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({"state_dict": _tensors(), "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    found = dict(formats.read(path).arrays)
    assert found.pop("epoch") == 3
    arrays = {name: np.asarray(leaf) for name, leaf in found["state_dict"].items()}
    path.write_bytes(b"")
    assert changed({name: to_numpy(name, tensor) for name, tensor in _tensors().items()}, arrays) == []


@pytest.mark.parametrize(("name", "mapped"), [("x.pt", True), ("x.ckpt", True), ("x.safetensors", False)])
def test_a_zip_file_is_mapped_where_torch_goes_by_no_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mapped: bool
) -> None:
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(options) or load(*args, **options))
    torch.save({"x": torch.ones(3)}, tmp_path / name)
    np.testing.assert_array_equal(np.asarray(formats.read(tmp_path / name).arrays["x"]), np.ones(3))
    assert [(call["weights_only"], call.get("mmap", False)) for call in calls] == [(True, mapped)]


def test_tensors_that_numpy_cannot_hold_are_left_as_they_are(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2), "y": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "x.pt")
    arrays = formats.read(tmp_path / "x.pt").arrays
    assert isinstance(arrays["y"], torch.Tensor)
    np.testing.assert_array_equal(np.asarray(arrays["x"]), np.ones(2))


def test_a_mapped_file_that_has_been_cut_is_an_error(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(100_000)}, tmp_path / "x.pt")
    arrays = formats.read(tmp_path / "x.pt").arrays
    os.truncate(tmp_path / "x.pt", 100)
    with pytest.raises(CheckpointError, match=r"x\.pt was replaced or written to since it was opened"):
        np.asarray(arrays["x"])


# What is read, and by whom

LARGE = 2**30


def _large_msgpack(path: Path) -> None:
    size = struct.pack(">I", LARGE)
    shape = b"\x93\x91\xce" + size + b"\xa4int8"
    head = b"\x82\xa1x\xc9" + struct.pack(">I", len(shape) + 5 + LARGE) + b"\x01" + shape + b"\xc6" + size
    with path.open("wb") as stream:
        stream.write(head)
        stream.seek(LARGE, os.SEEK_CUR)
        stream.write(b"\xa1y" + serialization.msgpack_serialize({"y": np.ones(3)})[3:])


def _large_shards(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "I8", "shape": [LARGE], "data_offsets": [0, LARGE]}}).encode()
    with (path.parent / "x-00001-of-00002.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + LARGE)
    save_file({"y": np.ones(3)}, path.parent / "x-00002-of-00002.safetensors")
    shards = {"x": "x-00001-of-00002.safetensors", "y": "x-00002-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": shards}))


LARGE_FILES: dict[str, Callable[[Path], None]] = {
    "x.msgpack": _large_msgpack,
    "x.safetensors.index.json": _large_shards,
}


@pytest.mark.parametrize("name", LARGE_FILES)
def test_large_arrays_are_not_read_before_they_are_used(tmp_path: Path, name: str) -> None:
    LARGE_FILES[name](tmp_path / name)
    tracemalloc.start()
    arrays = formats.read(tmp_path / name).arrays
    np.testing.assert_array_equal(np.asarray(arrays["y"]), np.ones(3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (arrays["x"].shape, arrays["x"].dtype) == ((LARGE,), np.int8)
    assert peak < 2**20


def test_arrays_are_asked_for_one_at_a_time_when_they_are_written(tmp_path: Path) -> None:
    class Counting(Mapping[str, np.ndarray]):
        """Arrays that are made when asked for, as many as are alive counted."""

        def __init__(self) -> None:
            self.names = [f"block/{i}" for i in range(20)]

        def __getitem__(self, name: str) -> np.ndarray:
            return np.full(2**17, self.names.index(name), np.float64)

        def __iter__(self) -> Any:
            return iter(self.names)

        def __len__(self) -> int:
            return len(self.names)

    tracemalloc.start()
    format_by_suffix(Path("x.msgpack")).write(tmp_path / "x.msgpack", Counting(), METADATA, "flax")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(read(tmp_path / "x.msgpack")) == 20


READ_BLOCKED = (
    BLOCKED.replace('"flax")', '"flax", "msgpack", "orbax")')
    + """
from pathlib import Path
import numpy as np
from mixer_equiv import MissingDependencyError
from mixer_equiv.checkpoints import formats
from mixer_equiv.arrays.interop import flatten

found = {}
for path in map(Path, sys.argv[1:]):
    try:
        leaves = dict(flatten(formats.read(path).arrays))
        found[path.name] = {name: np.asarray(leaf).tobytes().hex() for name, leaf in leaves.items()}
    except MissingDependencyError as error:
        found[path.name] = str(error)
print(json.dumps(found))
"""
)


def test_msgpack_and_shards_are_read_without_any_framework(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, TREE) for name in ("x.msgpack", f"x{sharded.SUFFIX}", "x.orbax")]
    found = printed(READ_BLOCKED, *paths)
    expected = {name: array.tobytes().hex() for name, array in flat(TREE).items()}
    assert found[paths[0].name] == found[paths[1].name] == expected
    assert "an Orbax checkpoint needs orbax.checkpoint" in found["x.orbax"]
    assert "pip install 'mixer_equiv[flax]'" in found["x.orbax"]


def test_a_file_does_not_take_the_place_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "kept" / "below").mkdir(parents=True)
    with (
        pytest.raises(CheckpointError, match="kept is a directory, and what is written is a file"),
        atomic.replacement(tmp_path / "kept") as temporary,
    ):
        temporary.write_text("text")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "kept", tmp_path / "kept" / "below"]


def test_a_pipe_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(CheckpointError, match=r"x\.npz is a pipe or a device; a checkpoint is a file"):
        formats.read(tmp_path / "x.npz")
    with (
        pytest.raises(CheckpointError, match=r"x\.npz is a pipe or a device, and is not replaced"),
        atomic.replacement(tmp_path / "x.npz") as temporary,
    ):
        temporary.write_text("text")
    assert (tmp_path / "x.npz").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["key", "disk"])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_directory_is_back_if_its_replacement_fails_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, raised: BaseException
) -> None:
    write(tmp_path / "x.orbax", TREE)
    before, seen, replace = snapshot(tmp_path), [], os.replace

    def replacing_once(source: Path, target: Path) -> None:
        seen.append(target)
        if len(seen) == failing + 1:
            raise raised
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing_once)
    with (
        pytest.raises(KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else CheckpointError),
        atomic.replacement(tmp_path / "x.orbax") as temporary,
    ):
        temporary.mkdir()
    assert len(seen) > failing
    assert snapshot(tmp_path) == before


def test_an_old_directory_is_kept_where_it_cannot_be_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.orbax", TREE)
    before, replace = list(snapshot(tmp_path / "x.orbax").values()), os.replace

    def replacing_old(source: Path, target: Path) -> None:
        if target.name == "x.orbax":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing_old)
    with pytest.raises(KeyboardInterrupt), atomic.replacement(tmp_path / "x.orbax") as temporary:
        temporary.mkdir()
    (kept,) = tmp_path.iterdir()
    assert list(snapshot(kept).values()) == before


@pytest.mark.parametrize("raised", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["key", "disk"])
def test_what_interrupts_torch_while_it_writes_is_what_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Any
) -> None:
    class Failing(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 20_000:
                raise raised
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(path, mode))
    with pytest.raises(KeyboardInterrupt if raised is KeyboardInterrupt else OSError) as caught:
        write(tmp_path / "x.pt", {str(i): np.ones(1000) for i in range(20)})
    assert isinstance(raised, type) or caught.value is raised
