"""Folders that hold one checkpoint: which file in them it is. Start at `read_folder`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mixer_equiv.checkpoints.formats import npy
from mixer_equiv.checkpoints.formats.base import Contents
from mixer_equiv.checkpoints.formats.msgpack import MSGPACK
from mixer_equiv.checkpoints.formats.ranks import notes_on, refuse_ranks
from mixer_equiv.checkpoints.formats.shard_sets import (
    INDEX_SUFFIX,
    all_parts,
    is_named_as_index,
    part_of,
    read_by_index,
    read_parts,
    shards_named_by,
)
from mixer_equiv.checkpoints.formats.single import FILE_FORMATS, read_file, recognised
from mixer_equiv.checkpoints.formats.steps import step_to_type, steps_in
from mixer_equiv.errors import CheckpointError, summarize

# What trainers and the hub write beside a model, which is no model.
_BESIDE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state).*"
    r"|sampler(_\d+)?\.bin|custom_checkpoint_\d+\.pkl|.*_optim_states\.pt",
    re.IGNORECASE,
)

# The hub's names of one model in several formats, of which its own libraries take the first that is there.
_OF_THE_HUB = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack"),
)

# "checkpoint_100": what `flax.training.checkpoints` wrote after 100 steps.
_STEP = re.compile(r"checkpoint_(\d{1,18})")

# Names of checkpoints, whatever is in them: a damaged one is called damaged.
_SUFFIXES = (*(suffix for file_format in FILE_FORMATS for suffix in file_format.suffixes), ".pkl", ".pickle", ".ckpt")

# Files that are not opened to see what they hold.
_TEXTS = (".json", ".jsonl", ".txt", ".md", ".yaml", ".yml", ".toml", ".py", ".log", ".csv", ".png", ".jpg", ".html")

# Formats that know their own files for sure. Other files may begin as msgpack, and most .npy hold data.
_SURE = [file_format for file_format in FILE_FORMATS if file_format not in (MSGPACK, npy.NPY)]

# Where DeepSpeed keeps the name of its last step.
_LATEST = "latest"


class _FoundInFolder(NamedTuple):
    path: Path
    notes: tuple[str, ...] = ()


def holds_checkpoint(folder: Path) -> bool:
    """Whether anything in a folder may be a checkpoint, or a part of one."""
    return any(map(_may_be_checkpoint, folder.iterdir())) or _latest_step(folder) is not None


def _may_be_checkpoint(file: Path) -> bool:
    name = file.name.lower()
    if name.startswith(".") or _BESIDE.fullmatch(name) or not file.is_file():
        return False
    if name.endswith((*_SUFFIXES, INDEX_SUFFIX)) or _STEP.fullmatch(name):
        return True
    return not name.endswith(_TEXTS) and _is_checkpoint(file)


def _is_checkpoint(file: Path) -> bool:
    """Whether a file of any name holds a checkpoint."""
    with contextlib.suppress(CheckpointError, OSError):
        return recognised(file, _SURE) is not None or npy.holds_objects(file)
    return False


def _latest_step(folder: Path) -> Path | None:
    """The folder of DeepSpeed's last step, which the file "latest" names; None where that tells none."""
    with contextlib.suppress(OSError, ValueError):
        with (folder / _LATEST).open("rb") as stream:
            name = stream.read(200).decode().strip()
        if re.fullmatch(r"[\w\-]+", name) and (folder / name).is_dir() and holds_checkpoint(folder / name):
            return folder / name
    return None


def read_folder(folder: Path) -> Contents:
    """Read the one checkpoint in a folder, with a note that names its file. Raises `CheckpointError`."""
    path, notes = _only_checkpoint(folder)
    if path.is_dir():
        contents = read_folder(path)
    elif is_named_as_index(path):
        contents = read_by_index(path)
    elif part := part_of(path):
        contents = read_parts(all_parts(path, part))
    else:
        contents = read_file(path)
        notes = (*notes, *notes_on(path))
    return contents._replace(notes=(*notes, *contents.notes))


def _only_checkpoint(folder: Path) -> _FoundInFolder:
    """The one checkpoint in a folder: an index, a file, the first part of a set, or the last of several steps."""
    files = sorted(file for file in folder.iterdir() if _may_be_checkpoint(file))
    if not files and (latest := _latest_step(folder)) is not None:
        return _FoundInFolder(latest, (f"{latest.name} was read, which the file {_LATEST!r} names",))
    for file in files:
        refuse_ranks(file)
    steps = {int(match[1]): file for file in files if (match := _STEP.fullmatch(file.name))}
    found = _whole_ones([file for file in files if file not in steps.values()])
    if steps:
        found.append(steps[max(steps)])
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint; it holds {contents_in_words(folder)}")
    if len(found) == 1:
        was_read = f"{_in_words(found[0])}, of the folder {folder.absolute().name}"
        last = (f"{found[0].name} is the last of {len(steps)} steps",) * (len(steps) > 1)
        return _FoundInFolder(found[0], (was_read, *last, *_notes_on_steps(folder)))
    found.sort()
    names = [file.name for file in found]
    if set(names) <= set(_OF_THE_HUB):
        first = min(found, key=lambda file: _OF_THE_HUB.index(file.name))
        rest = ", ".join(name for name in names if name != first.name)
        note = f"{first.name} was read, and not {rest} beside it"
        return _FoundInFolder(first, (note, *_notes_on_steps(folder)))
    or_step = f", or its step: {typed}" if (typed := step_to_type(folder, found)) else ""
    raise CheckpointError(
        f"{folder} holds {len(found)} checkpoints ({', '.join(names)}); give the path of one of them{or_step}"
    )


def _whole_ones(files: Sequence[Path]) -> list[Path]:
    """The files that are no shards of others, and the first part of each set that no index names."""
    alone = [file for file in files if not part_of(file)]
    shards = {shard for file in alone if is_named_as_index(file) for shard in shards_named_by(file)}
    sets = {
        (part.stem, part.total): file for file in reversed(files) if (part := part_of(file)) and file.name not in shards
    }
    return [*(file for file in alone if file.name not in shards), *sets.values()]


def _in_words(path: Path) -> str:
    part = part_of(path)
    return f"{path.name} was read" if part is None else f"{path.name} and the other parts of {part.total} were read"


def _notes_on_steps(folder: Path) -> list[str]:
    """Say which steps stand in folders beside the checkpoint that was read, as trainers leave them."""
    entries = steps_in(folder)
    steps = sorted(step for entry, step in entries.items() if entry.is_dir() and holds_checkpoint(entry))
    if not steps:
        return []
    shown = summarize([str(step) for step in steps], shown=12)
    return [f"the steps {shown} stand beside it and were not read; step={steps[-1]} (--step {steps[-1]}) reads one"]


def contents_in_words(folder: Path) -> str:
    """What is in a folder, in words."""
    return summarize(sorted(file.name for file in folder.iterdir())) or "nothing"
