"""File formats, each a reader and a writer of named arrays, found by contents or by suffix.

Nothing is ever unpickled by free rules.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer_equiv.containers.container import Container, LazyArray, reading, replacing
from mixer_equiv.containers.npz import NPZ
from mixer_equiv.containers.safetensors import SAFETENSORS
from mixer_equiv.containers.torch import TORCH
from mixer_equiv.errors import CheckpointError

CONTAINERS = (NPZ, SAFETENSORS, TORCH)
SUFFIXES = tuple(suffix for container in CONTAINERS for suffix in container.suffixes)

__all__ = ["CONTAINERS", "SUFFIXES", "Container", "Contents", "LazyArray", "container_for", "read", "replacing"]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds: arrays by name, possibly nested, read when they are used, and our metadata if it has any."""

    arrays: Mapping[str, Any]
    metadata: dict[str, Any]


def read(path: Path) -> Contents:
    """The contents of `path`, by what the file holds, whatever its suffix.

    Raises `CheckpointError` for a file that is missing, truncated, junk or of no known format,
    and `MissingDependencyError` for .pt without torch.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    with reading(path):
        container = next((c for c in CONTAINERS if c.recognise(path)), None) or _by_suffix(path)
        arrays, metadata = container.read(path)
        return Contents(arrays, _parse(metadata))


def _parse(metadata: str | None) -> dict[str, Any]:
    values = json.loads(metadata or "{}")
    return values if isinstance(values, dict) else {}


def container_for(path: Path) -> Container:
    """The format that `path`'s suffix names. Raises `CheckpointError` for an unknown suffix."""
    name = path.name.lower()
    for container in CONTAINERS:
        if name.endswith(container.suffixes):
            return container
    raise CheckpointError(f"{path} has the suffix {path.suffix!r}; a checkpoint is one of {', '.join(SUFFIXES)}")


def _by_suffix(path: Path) -> Container:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; a checkpoint is a file: {', '.join(SUFFIXES)}")
    try:
        return container_for(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, and its contents are none of them either") from None
