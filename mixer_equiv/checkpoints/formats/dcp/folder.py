"""The format of torch.distributed.checkpoint: a folder with `.metadata` and files `.distcp`. Read, and never written.

Start at `DCP`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mixer_equiv.arrays.interop import unflatten
from mixer_equiv.checkpoints.formats.base import ZIP_DAMAGE, Contents, FileFormat, Framework
from mixer_equiv.checkpoints.formats.dcp.chunks import arrays_of
from mixer_equiv.checkpoints.formats.dcp.metadata import merge, read_metadata
from mixer_equiv.checkpoints.names import NESTING
from mixer_equiv.checkpoints.renaming import names_below_another
from mixer_equiv.errors import CheckpointError, summarize

_SUFFIX = ".distcp"

# The pickle for all ranks, or one for each rank, which torch writes where ranks save without talking to each other.
_FOR_ALL, _FOR_ONE = ".metadata", re.compile(r"__\d+\.metadata")

# A pickle of torch's `Metadata` begins with the name of its module.
_MODULE = re.compile(rb"torch\.distributed\.(\w+\.)*checkpoint\.metadata")

# Deeper dicts are no state_dict, and readers follow them by recursion.
_MAX_DEPTH = 100


def _recognise(path: Path) -> bool:
    if path.is_dir():
        return any(map(_is_pickle, _pickles_in(path))) or any(path.glob(f"*{_SUFFIX}"))
    return path.is_file() and (path.suffix == _SUFFIX or _is_pickle(path))


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return _MODULE.search(stream.read(100)) is not None


def _pickles_in(folder: Path) -> list[Path]:
    """The pickle for all ranks by its name; else those of each."""
    files = sorted(file for file in folder.iterdir() if file.name == _FOR_ALL or _FOR_ONE.fullmatch(file.name))
    found = [file for file in files if file.is_file()]
    return [file for file in found if file.name == _FOR_ALL] or found


def _read(path: Path) -> Contents:
    folder = path if path.is_dir() else path.parent
    pickles = _pickles_in(folder) or [path] * (path != folder and _is_pickle(path))
    if not pickles:
        raise CheckpointError(
            f"{folder} has files {_SUFFIX} and no {_FOR_ALL}, which tells what is in them: either saving did not end, "
            f"or a copy left this hidden file out, as `cp folder/*` does; copy it into {folder} too"
        )
    metadata = merge([read_metadata(file) for file in pickles])
    if not metadata.tensors:
        others = [f"{name} is {other.what}" for name, other in metadata.others.items()]
        raise CheckpointError(
            f"{pickles[0]} describes no tensor: {summarize(others) or 'it is empty'}; expected what "
            "torch.distributed.checkpoint.save writes of a state_dict"
        )
    leaves = {**arrays_of(pickles[0], metadata.tensors), **metadata.others}
    notes = () if path == folder else (f"{path.name} is one of the files of its folder, all of which were read",)
    return Contents(_nested(leaves, metadata.keys), None, notes)


def _nested(leaves: Mapping[str, Any], keys: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Leaves in nested dicts as they were saved, or under their dotted names where not all keys are told."""
    named = {NESTING.join(_keys(keys.get(name))): leaf for name, leaf in leaves.items()}
    told = len(named) == len(leaves) and "" not in named and all(name.count(NESTING) < _MAX_DEPTH for name in named)
    return unflatten(named) if told and not names_below_another(named) else leaves


def _keys(path: Any) -> list[str]:
    """The keys on the way to a leaf; none where they are not told."""
    is_path = isinstance(path, tuple) and all(isinstance(key, str | int) for key in path)
    return list(map(str, path)) if is_path else []


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> NoReturn:
    raise CheckpointError(f"{path} cannot be written: folders of torch.distributed.checkpoint are read and not written")


DCP = FileFormat("torch.distributed.checkpoint", (), _recognise, _read, _write, damage=ZIP_DAMAGE)
