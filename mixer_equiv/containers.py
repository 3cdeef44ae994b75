"""File formats: npz, safetensors and torch's .pt, each a reader and a writer of named arrays.

Nothing is ever unpickled by free rules: npz refuses object arrays, and .pt files are read with
`weights_only=True` by a torch new enough for that to hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import re
import secrets
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401  # safetensors finds bfloat16 only once this has registered it
import numpy as np

from mixer_equiv.arrays import require, to_torch
from mixer_equiv.errors import CheckpointError, MissingDependencyError, MixerEquivError

Framework = Literal["flax", "torch"]

# Where a file's metadata holds ours, as JSON.
METADATA_KEY = "mixer_equiv"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds: arrays by name, possibly nested, and our metadata if it has any."""

    arrays: Mapping[str, Any]
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Container:
    """One file format."""

    name: str
    suffixes: tuple[str, ...]
    recognise: Callable[[Path], bool]
    read: Callable[[Path], tuple[Mapping[str, Any], str | None]]
    write: Callable[[Path, Mapping[str, np.ndarray], str, Framework], None]


def read(path: Path) -> Contents:
    """The contents of `path`, by what the file holds, whatever its suffix.

    Raises `CheckpointError` for a file that is missing, truncated, junk or of no known format,
    and `MissingDependencyError` for .pt without torch.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; a checkpoint is a file: {', '.join(SUFFIXES)}")
    try:
        container = next((c for c in CONTAINERS if c.recognise(path)), None) or _by_suffix(path)
        arrays, metadata = container.read(path)
        return Contents(arrays, _parse(metadata))
    except MixerEquivError:
        raise
    except Exception as error:  # what parsers raise on damaged input is almost anything
        raise CheckpointError(
            f"{path} cannot be read: it is damaged or not a checkpoint ({_first_sentence(error)})"
        ) from error


def _parse(metadata: str | None) -> dict[str, Any]:
    values = json.loads(metadata or "{}")
    return values if isinstance(values, dict) else {}


def _first_sentence(error: Exception) -> str:
    sentence = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {sentence}" if sentence else type(error).__name__


def container_for(path: Path) -> Container:
    """The format that `path`'s suffix names. Raises `CheckpointError` for an unknown suffix."""
    for container in CONTAINERS:
        if path.suffix.lower() in container.suffixes:
            return container
    raise CheckpointError(f"{path} has the suffix {path.suffix!r}; a checkpoint is one of {', '.join(SUFFIXES)}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end, and gone if anything fails.

    Raises `CheckpointError` where the system does not let it be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _by_suffix(path: Path) -> Container:
    try:
        return container_for(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and its contents are none of them either") from None


def _zip_names(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


# npz


def _is_npz(path: Path) -> bool:
    return any(name.endswith(".npy") for name in _zip_names(path))


def _read_npz(path: Path) -> tuple[Mapping[str, Any], str | None]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise CheckpointError(f"{path} holds {', '.join(repeated)} more than once")
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise CheckpointError(f"{path} holds {info.filename!r}, which is not an array")
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                _check_npy_header(f"{name} in {path}", member, info.file_size)
            # Opened anew, because seeking back would switch the CRC check off.
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        comment = archive.comment.decode("utf-8", "replace")
    return arrays, comment if comment.startswith("{") else None


def _check_npy_header(what: str, member: Any, size: int) -> None:
    """Refuse pickles, and sizes that the file does not have, before anything is allocated."""
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointError(f"{what} is of npy format version {version}; 1.0 and 2.0 are read")
    shape, _, dtype = readers[version](member)
    if dtype.hasobject:
        raise CheckpointError(f"{what} is an array of Python objects (a pickle), which is never loaded")
    declared = dtype.itemsize
    for side in shape:
        declared *= side
    if declared != size - member.tell():
        raise CheckpointError(f"{what} declares {declared} bytes ({shape} of {dtype}) and holds {size - member.tell()}")


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    with path.open("xb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
    # An extra array would break strict readers of the published layout; a zip comment breaks none.
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = metadata.encode()


# safetensors


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as stream:
        return re.match(rb"[\s\S]{8}\{", stream.read(9)) is not None


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], str | None]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as tensors:
        metadata = (tensors.metadata() or {}).get(METADATA_KEY)
        return {name: tensors.get_tensor(name) for name in tensors.keys()}, metadata  # noqa: SIM118


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    form = {"torch": "pt", "flax": "flax"}[framework]
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    try:
        save_file(dict(arrays), path, metadata={"format": form, METADATA_KEY: metadata})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # save_file leaves files that only their owner can read


# torch


def _is_torch(path: Path) -> bool:
    if any(name.endswith("data.pkl") for name in _zip_names(path)):
        return True
    # Before zip files, torch.save began with this pickled long, its magic number.
    with path.open("rb") as stream:
        return stream.read(14).endswith(bytes.fromhex("6cfc9c46f9206aa85019"))


def _safe_torch() -> Any:
    torch = require("torch", "torch", "a .pt file")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise MissingDependencyError(
            f"a .pt file needs torch 2.10 or newer, because older ones can be made to run code "
            f"(CVE-2025-32434, CVE-2026-24747); torch {torch.__version__} is installed"
        )
    return torch


def _read_torch(path: Path) -> tuple[Mapping[str, Any], str | None]:
    torch = _safe_torch()
    try:
        # Given a path instead of a stream, torch would go by its suffix.
        with path.open("rb") as stream:
            loaded = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it anyway.
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"Python objects ({named[1]})" if named else "something else than weights, or is damaged"
        raise CheckpointError(
            f"{path} holds {what}, so it is not loaded; save model.state_dict() instead of the model"
        ) from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a state_dict")
    return loaded, getattr(loaded, METADATA_KEY, None)


def _write_torch(path: Path, arrays: Mapping[str, np.ndarray], metadata: str, framework: Framework) -> None:
    # An attribute of an OrderedDict is pickled with it, weights_only loads it, and nobody trips on it.
    torch = _safe_torch()
    state = OrderedDict((name, to_torch(array)) for name, array in arrays.items())
    setattr(state, METADATA_KEY, metadata)
    try:
        with path.open("xb") as stream:
            torch.save(state, stream)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(str(error).partition("\n")[0]) from error


CONTAINERS = (
    Container("npz", (".npz",), _is_npz, _read_npz, _write_npz),
    Container("safetensors", (".safetensors",), _is_safetensors, _read_safetensors, _write_safetensors),
    Container("torch", (".pt", ".pth", ".bin"), _is_torch, _read_torch, _write_torch),
)


SUFFIXES = tuple(suffix for container in CONTAINERS for suffix in container.suffixes)
