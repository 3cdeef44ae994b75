"""`Provenance`: what made a report: versions, the call, its seed and date, and the hashes of the files behind it.

Nothing in it tells who made it or where (`mixer_equiv.shown_paths`). Knows no model; `equivalence.call_record` fills
it in for `verify`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mixer_equiv.checkpoints.formats.shard_sets import is_named_as_index, part_of, shards_named_by
from mixer_equiv.shown_paths import shown_path

# Files of more bytes are not hashed. Every published Mixer in float32 is smaller, and takes a second or two.
LARGEST_HASHED = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """A file, or the files of one folder or set of shards, as `num_bytes` and their SHA-256.

    `sha256` of several files is that of the lines that `sha256sum` prints for them, in the order of their names. It is
    None for more than `LARGEST_HASHED` bytes, and for files that are gone.
    """

    path: str
    num_bytes: int
    sha256: str | None

    @classmethod
    def of(cls, path: Path) -> FileDigest:
        """The digest of a file, of all files below a folder, or of all shards of one set."""
        files = _files_at(path)
        try:
            size = sum(file.stat().st_size for file in files)
            return cls(shown_path(path), size, None if size > LARGEST_HASHED else _sha256(path, files))
        except OSError:
            return cls(shown_path(path), 0, None)

    def __str__(self) -> str:
        told = f"{self.sha256[:12]}..." if self.sha256 else f"not computed ({self.num_bytes:,} bytes)"
        return f"{self.path} sha256 {told}"


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What made a report.

    `call` is the command line, or the call in Python with models as `TheirMixer(...)`. `date` is that of the day in
    UTC. `versions` are those of this package, of Python and of the frameworks in use. `files` were read for weights,
    and `sources` hold the code of the models.
    """

    call: str
    seed: int
    date: str
    versions: Mapping[str, str]
    files: tuple[FileDigest, ...] = ()
    sources: tuple[FileDigest, ...] = ()

    @property
    def is_command(self) -> bool:
        """Whether the call was a command line."""
        return self.call.startswith("mixer-equiv ")

    def __str__(self) -> str:
        digests = ", ".join(map(str, (*self.files, *self.sources)))
        made = f"mixer_equiv {self.versions['mixer_equiv']}: {self.call}, seed {self.seed}, {self.date}"
        return f"{made}; {digests}" if digests else made


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if is_named_as_index(path):
        return sorted({path, *(path.with_name(shard) for shard in shards_named_by(path))})
    part = part_of(path)
    if part is None:
        return [path]
    beside = {file: part_of(file) for file in path.parent.iterdir() if file.suffix == path.suffix}
    return sorted(file for file, other in beside.items() if other is not None and other.is_of_set(part))


def _sha256(path: Path, files: Iterable[Path]) -> str:
    hashes = {file: _sha256_of_file(file) for file in files}
    if list(hashes) == [path]:
        return hashes[path]
    folder = path if path.is_dir() else path.parent
    lines = "".join(f"{hashed}  {file.relative_to(folder).as_posix()}\n" for file, hashed in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
