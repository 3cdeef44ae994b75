"""Orbax checkpoints: Orbax reads what we write, and we read what it and Flax's trainers write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training import checkpoints

from mixer_equiv import CheckpointError
from mixer_equiv.checkpoints import formats
from mixer_equiv.checkpoints.formats import format_by_suffix, is_replaceable, orbax
from mixer_equiv.checkpoints.names import undo_entries
from mixer_equiv.testing.strategies import DTYPES
from tests.support.files import arbitrary_bits, changed
from tests.support.scripts import printed, python
from tests.support.trees import flat, params, read, train_state, write


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(3, 5, rngs=rngs)
        self.blocks = nnx.List([nnx.LayerNorm(5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])
        self.value = nnx.Linear(5, 7, rngs=rngs)


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
def test_the_key_that_nnx_has_around_every_array_is_undone(tmp_path: Path, writer: str) -> None:
    state = nnx.state(Model())
    ORBAX_WRITERS[writer](tmp_path / "x", state)
    stored = read(tmp_path / "x")
    names = undo_entries(stored).names
    assert changed(flat(nnx.to_pure_dict(state)), {names[name]: array for name, array in stored.items()}) == []
    assert "value/kernel" in names.values()


def test_an_array_called_value_among_others_keeps_its_name(tmp_path: Path) -> None:
    tree = {"a": {"value": np.ones(3), "scale": np.ones(5)}, "b": {"value": np.ones(2), "c": {"d": np.ones(7)}}}
    _pytree(tmp_path / "x", tree | {"value": np.zeros(3)})
    assert sorted(undo_entries(read(tmp_path / "x")).names.values()) == [
        "a/scale",
        "a/value",
        "b/c/d",
        "b/value",
        "value",
    ]


def test_lists_and_leaves_that_are_no_arrays(tmp_path: Path) -> None:
    leaves = [np.ones(2), {"x": np.zeros(3)}, None]
    tree: dict[str, Any] = {"list": leaves, "tuple": (np.ones(5),), "none": None, "empty": {}}
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


def test_names_that_no_nested_dict_can_have_are_refused_in_words(tmp_path: Path) -> None:
    _pytree(tmp_path / "x", {"a": np.ones(3), "a/b": np.ones(2)})
    with pytest.raises(CheckpointError, match=r"x holds arrays below another, which no nested names can tell: a/b"):
        formats.read(tmp_path / "x")
