"""safetensors in several files with an index, as Hugging Face writes them. `shard_sets` reads them, and other sets.

Start at `write_sharded` for the names of files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixer_equiv import atomic
from mixer_equiv.arrays.chunks import group_by_size
from mixer_equiv.arrays.lazy import as_lazy, specs_of
from mixer_equiv.checkpoints.formats import folders, safetensors, shard_sets
from mixer_equiv.checkpoints.formats.base import METADATA_KEY, Contents, FileFormat, Framework
from mixer_equiv.errors import CheckpointError, summarize

SUFFIX = ".safetensors.index.json"

# Decimal, as Hugging Face counts, unless the unit says otherwise.
_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
}

DEFAULT_SHARD_SIZE = 5 * _UNITS["GB"]


def parse_size(size: str | int | None) -> int:
    """Parse "5GB", "100 MB", "2GiB" or a number to bytes; None is 5GB. Raises `CheckpointError` for anything else."""
    if size is None:
        return DEFAULT_SHARD_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(size).strip())
    number = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else 0.0
    parsed = int(number) if math.isfinite(number) else 0
    if parsed < 1:
        raise CheckpointError(f"found the size {size!r}; expected bytes, or a size such as 5GB, 100MB or 2GiB")
    return parsed


def _recognise(path: Path) -> bool:
    if path.is_dir():
        return folders.holds_checkpoint(path)
    return path.is_file() and shard_sets.is_index(path)


def _read(path: Path) -> Contents:
    return folders.read_folder(path) if path.is_dir() else shard_sets.read_by_index(path)


def write_sharded(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: str,
    framework: Framework,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    *,
    force: bool = False,
    fsync: bool = False,
) -> Path:
    """Write safetensors of at most `max_shard_size` bytes of arrays each, and return the path by which to read them.

    A larger array has a shard of its own. `path` names the index, or the single file `*.safetensors`,
    which is written instead of shards if one would do. All files are written beside it and then moved
    into place, the index last. Raises `CheckpointError` if a file of a checkpoint of this name
    exists, unless `force`, which removes it, and if a file cannot be written.
    """
    target = _Target.of(path)
    sizes = _sizes(arrays)
    files = target.files(sizes, max_shard_size)
    with atomic.replacements(path, target.old_files(list(files), force), fsync) as folder:
        for file, names in files.items():
            held = as_lazy(arrays).rename({name: name for name in names})
            safetensors.write(folder / file, held, metadata, framework)
        if path.name in files:
            return path
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values()), METADATA_KEY: metadata}, "weight_map": weight_map}
        (folder / target.index.name).write_text(json.dumps(index, indent=2) + "\n")
    return target.index


def sharded_path(path: Path, arrays: Mapping[str, np.ndarray], max_shard_size: int) -> Path:
    """The path that `write_sharded` would return."""
    target = _Target.of(path)
    return path if path.name in target.files(_sizes(arrays), max_shard_size) else target.index


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of each array."""
    return {name: spec.nbytes for name, spec in specs_of(arrays).items()}


@dataclasses.dataclass(frozen=True)
class _Target:
    """The files that a checkpoint may have: the index or the single file, and shards that begin with the stem."""

    stem: str
    index: Path
    single: Path
    path: Path

    @classmethod
    def of(cls, path: Path) -> _Target:
        """Name all files after the path of the index or the single file. Its suffix keeps its case."""
        for suffix in (SUFFIX, ".safetensors"):
            if path.name.lower().endswith(suffix):
                stem = path.name[: -len(suffix)]
                named = {end: path.with_name(stem + end) for end in (SUFFIX, ".safetensors")} | {suffix: path}
                return cls(stem, named[SUFFIX], named[".safetensors"], path)
        raise CheckpointError(f"{path} cannot be sharded; give a name that ends with .safetensors or {SUFFIX}")

    def files(self, sizes: Mapping[str, int], max_shard_size: int) -> dict[str, list[str]]:
        """Distribute arrays over files: the single one if it was asked for and will do, else shards."""
        shards = group_by_size(sizes, max_shard_size)
        if len(shards) < 2 and self.path == self.single:
            return {self.path.name: list(sizes)}
        return {f"{self.stem}-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}

    def old_files(self, new: list[str], force: bool) -> list[Path]:
        """Find the files that have to give way: index, single file, shards of its name in the old index, `new` ones.

        Shards that no index names, and files of other names in an index, may belong to another checkpoint, and stay.
        """
        ours = {self.index, self.single, *(self.index.with_name(name) for name in new)}
        alike = self.index.parent.glob(f"{glob.escape(self.stem)}-*-of-*.safetensors")
        found = sorted(str(path) for path in {*ours, *alike} if os.path.lexists(path))
        if found and not force:
            raise CheckpointError(
                f"{summarize(found)} exist{'s'[len(found) > 1 :]}; pass force=True (--force) to replace"
            )
        old = sorted(path for path in {*ours, *self._old_shards()} if os.path.lexists(path))
        folders = [str(path) for path in old if path.is_dir()]
        if folders:
            raise CheckpointError(f"{', '.join(folders)} is a directory where a file has to go; move it away")
        return old

    def _old_shards(self) -> set[Path]:
        with contextlib.suppress(OSError):
            weight_map, _ = shard_sets.read_index(self.index)
            own = re.compile(rf"{re.escape(self.stem)}-\d+-of-\d+\.safetensors")
            return {self.index.with_name(shard) for shard in weight_map.values() if own.fullmatch(shard)}
        return set()


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    write_sharded(path, arrays, metadata, framework)


SHARDED = FileFormat(
    "sharded safetensors",
    (SUFFIX,),
    _recognise,
    _read,
    _write,
    several_files=True,
    damage=safetensors.SAFETENSORS_DAMAGE,
)
