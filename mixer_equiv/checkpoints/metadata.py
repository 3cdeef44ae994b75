"""The metadata of a checkpoint file: one JSON object about its weights, with its writer and its reader.

Knows no file format. A format keeps the text wherever it has room (`formats.base.METADATA_KEY`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import CheckpointError, ConfigError
from mixer_equiv.layouts import Conventions

# To be raised when readers of the version before would misunderstand the fields.
FORMAT_VERSION = 1

_TO_UPGRADE = "pip install --upgrade mixer_equiv"


def to_json(
    layout: str,
    config: MixerConfig,
    trained_with: Conventions | None,
    *,
    image_size_is_assumed: bool,
    assumed_from: str | None = None,
) -> str:
    """Write the metadata of weights in `layout` as text for a file."""
    return json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "layout": layout,
            "config": config.to_dict(),
            "image_size_is_assumed": image_size_is_assumed,
            "trained_with": dataclasses.asdict(trained_with) if trained_with else None,
            **({"trained_with_assumed_from": assumed_from} if assumed_from else {}),
        }
    )


def from_json(text: Any, source: str) -> dict[str, Any]:
    """Read the fields of a file's metadata; none if the file has no metadata, or a JSON value that is no object.

    `text` is whatever stood in the file. Raises `CheckpointError`, which calls the file `source`, for
    text that is not JSON.
    """
    try:
        fields = json.loads(text or "{}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} has metadata of mixer_equiv that are not JSON ({error}): {text!r}") from error
    return fields if isinstance(fields, dict) else {}


# Of more blocks no file tells; every block makes work before an array is looked at.
MAX_BLOCKS = 4096


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The fields in a file's metadata, each checked when it is asked for.

    Checking late lets the caller's own config stand in for one in the file that makes no sense. A
    property is None where the file says nothing. Files written before there was a version have none
    and are read as version 1. Raises `CheckpointError` for a newer version, and, where a field is asked
    for, if it makes no sense.
    """

    fields: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        version = self.fields.get("format_version", FORMAT_VERSION)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise self._error(f"format_version is {version!r}; it must be a whole number of at least 1")
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{self.source} has metadata of format version {version}, and this mixer_equiv reads versions up to "
                f"{FORMAT_VERSION}; a newer mixer_equiv wrote it, so upgrade: {_TO_UPGRADE}"
            )

    @property
    def layout(self) -> str | None:
        """Name of the layout that the arrays were written in."""
        name = self.fields.get("layout")
        return name if isinstance(name, str) else None

    @property
    def config(self) -> MixerConfig | None:
        """Sizes and conventions of the model."""
        values = self._object("config")
        if values is None:
            return None
        try:
            config = MixerConfig.from_dict(values)
        except ConfigError as error:
            raise self._error(error) from error
        if config.num_blocks > MAX_BLOCKS:
            raise self._error(f"num_blocks is {config.num_blocks}; no Mixer has more than {MAX_BLOCKS}")
        return config

    @property
    def states_trained_with(self) -> bool:
        """Whether the file says what the weights were trained with, be it only that nobody knows."""
        return "trained_with" in self.fields

    @property
    def trained_with(self) -> Conventions | None:
        """Conventions that the weights were trained with."""
        values = self._object("trained_with")
        if values is None:
            return None
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(Conventions)})
        if unknown:
            raise self._error(f"trained_with has no field {', '.join(unknown)}")
        try:
            return Conventions(**values)
        except ConfigError as error:
            raise self._error(error) from error

    @property
    def assumed_from(self) -> str | None:
        """Name of the layout whose code's conventions `trained_with` are, for lack of better knowledge."""
        name = self.fields.get("trained_with_assumed_from")
        return name if isinstance(name, str) else None

    @property
    def image_size_is_assumed(self) -> bool | None:
        """Whether the image size in `config` is a guess from the number of tokens."""
        name = "image_size_is_assumed"
        return bool(self.fields[name]) if name in self.fields else None

    def _object(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a field; None for a field that is absent or empty."""
        values = self.fields.get(name)
        if not values:
            return None
        if not isinstance(values, dict):
            raise self._error(f"{name} is {values!r}; it must be an object")
        return values

    def _error(self, problem: object) -> CheckpointError:
        return CheckpointError(f"{self.source} has metadata of mixer_equiv that cannot be understood: {problem}")
