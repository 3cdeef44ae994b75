"""Orbax checkpoints: directories of one tree, of a step with several items, or of all steps of a training."""

from __future__ import annotations

import contextlib
import gc
import glob
import json
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays.chunks import group_by_size
from mixer_equiv.arrays.interop import is_array, require, unflatten
from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.atomic import remove
from mixer_equiv.checkpoints.formats.base import (
    ANY_DAMAGE,
    METADATA_KEY,
    Contents,
    FileFormat,
    Framework,
    StoredArray,
    refuse_damage,
)
from mixer_equiv.checkpoints.renaming import names_below_another
from mixer_equiv.errors import CheckpointError, summarize

# Orbax restores many arrays as fast as one, so neighbours of about this many bytes are restored together.
RESTORED_AT_ONCE = 2**28

# Directories of steps: "100", "checkpoint_100". The name of one that is being written goes on after the number.
_STEP = re.compile(r"(.*_)?(\d+)")


def is_item(path: Path) -> bool:
    """Whether Orbax saved one tree in this directory."""
    return "tree_metadata" in _json(path / "_METADATA")


def _items(path: Path) -> dict[str, Path]:
    """Find the trees of a checkpoint by name: "" for a tree itself, else those of the step, or of the last step."""
    if is_item(path):
        return {"": path}
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    steps = _steps_in(path)
    if (path / "_CHECKPOINT_METADATA").exists() or (_STEP.fullmatch(path.name) and not steps):
        return {folder.name: folder for folder in folders if is_item(folder)}
    found = (_items(steps[number]) for number in sorted(steps, reverse=True) if _is_committed(steps[number]))
    return next(filter(None, found), {})


def _is_committed(step: Path) -> bool:
    """Whether a step was written to its end. Where its name does not tell, the time of its end is missing."""
    return _json(step / "_CHECKPOINT_METADATA").get("commit_timestamp_nsecs", 0) is not None


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file, or no object in it."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> Contents:
    orbax = require("orbax.checkpoint", "flax", "an Orbax checkpoint")
    items = _items(path)
    if not items:
        damaged = "its _METADATA is damaged; " if (path / "_METADATA").is_file() else ""
        raise CheckpointError(
            f"{path} is no Orbax checkpoint; {damaged}expected a directory with _METADATA, or of steps"
        )
    read = {name: _tree(orbax, folder.absolute()) for name, folder in items.items()}
    notes = _notes_on_step(path, items)
    if len(read) == 1:
        return next(iter(read.values()))._replace(notes=notes)
    return Contents({name: contents.arrays for name, contents in read.items()}, None, notes)


def _notes_on_step(path: Path, items: Mapping[str, Path]) -> tuple[str, ...]:
    """Say which of several steps in `path` the items are of."""
    name, item = next(iter(items.items()))
    step = item.parent if name else item
    steps = _steps_in(path)
    if step == path or len(steps) < 2:
        return ()
    shown = summarize([str(number) for number in sorted(steps)], shown=12)
    return (f"{step.name} was read, of the steps {shown}; step= (--step) says another",)


def _steps_in(path: Path) -> dict[int, Path]:
    """Find the folders of steps by their numbers."""
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    return {int(match[2]): folder for folder in folders if (match := _STEP.fullmatch(folder.name))}


def _tree(orbax: Any, path: Path) -> Contents:
    """Read one item. Leaves that are no arrays, such as empty optimizer states, are left out."""
    from jax import tree_util

    # A checkpointer in place of the handler would warn of items that belong to a step.
    with refuse_damage(path, ANY_DAMAGE), _quiet_failures():
        tree = orbax.PyTreeCheckpointHandler().metadata(path).tree
    leaves, structure = tree_util.tree_flatten_with_path(tree)
    names = [tree_util.keystr(key, simple=True, separator="/") for key, _ in leaves]
    arrays = {i: leaf for i, (_, leaf) in enumerate(leaves) if is_array(leaf)}
    with refuse_damage(path, ANY_DAMAGE):  # shapes and names of dtypes are the file's
        specs = {i: Spec(tuple(leaf.shape), np.dtype(leaf.dtype)) for i, leaf in arrays.items()}
    restore = lru_cache(maxsize=1)(partial(_restore, orbax, path, structure))
    stored = {}
    for batch in group_by_size({i: spec.nbytes for i, spec in specs.items()}, RESTORED_AT_ONCE):
        for i in batch:
            read = partial(_one, restore, frozenset(batch), i)
            stored[names[i]] = StoredArray(specs[i].shape, specs[i].dtype, read, path)
    if below := names_below_another(stored):
        raise CheckpointError(f"{path} holds arrays below another, which no nested names can tell: {summarize(below)}")
    custom = _json(path / "_CHECKPOINT_METADATA").get("custom_metadata")
    metadata = custom.get(METADATA_KEY) if isinstance(custom, dict) else None
    return Contents(unflatten(stored), metadata if isinstance(metadata, str) else None)


def _restore(orbax: Any, path: Path, structure: Any, wanted: frozenset[int]) -> list[Any]:
    """Restore the `wanted` leaves alone, as NumPy arrays whatever device they were on."""
    import jax

    item = structure.unflatten([0 if i in wanted else ... for i in range(structure.num_leaves)])
    as_numpy = jax.tree.map(lambda _: orbax.RestoreArgs(restore_type=np.ndarray), item)
    restore_args = orbax.args.PyTreeRestore(item=item, restore_args=as_numpy)
    with refuse_damage(path, ANY_DAMAGE), _quiet_failures():
        return jax.tree.leaves(orbax.PyTreeCheckpointer().restore(path, args=restore_args))


def _one(restore: Callable[[frozenset[int]], list[Any]], batch: frozenset[int], i: int) -> np.ndarray:
    return np.array(restore(batch)[i])  # a copy, since the restored arrays are kept for their neighbours


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    orbax = require("orbax.checkpoint", "flax", "an Orbax checkpoint")
    tree = unflatten({name: arrays[name] for name in arrays})
    try:
        with _quiet_failures():
            orbax.PyTreeCheckpointer().save(path.absolute(), tree, custom_metadata={METADATA_KEY: metadata})
    except ValueError as error:  # tensorstore raises it for a full disk
        raise OSError(str(error).partition("\n")[0]) from error
    finally:
        for left in path.parent.glob(f"{glob.escape(path.name)}.orbax-checkpoint-tmp*"):
            remove(left)


@contextlib.contextmanager
def _quiet_failures() -> Iterator[None]:
    """Raise a failure of Orbax, and keep it from also being logged and printed.

    Orbax closes its event loop at the first failure. Soon after, each array that was still on its way
    tells `sys.unraisablehook` that the loop is closed, or asyncio that nobody asked for its result.
    """
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    levels = [logger.level for logger in loggers]

    def ignore_closed_loop(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = ignore_closed_loop
    try:
        yield
    except Exception as error:
        time.sleep(0.1)
        with warnings.catch_warnings():  # that coroutines were never awaited
            warnings.simplefilter("ignore", RuntimeWarning)
            traceback.clear_frames(error.__traceback__)
            gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _recognise(path: Path) -> bool:
    return (path / "_METADATA").is_file() or bool(_items(path))


ORBAX = FileFormat("orbax", (".orbax",), _recognise, _read, _write, is_directory=True)
