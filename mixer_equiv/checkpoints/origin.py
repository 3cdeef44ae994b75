"""What stands in a file, and beside it, of the code that its weights were trained by.

Start at `names_of`, for names, and at `conventions_of`, for modules that were saved whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixer_equiv.checkpoints.convention_warnings import describe_activation, describe_conventions
from mixer_equiv.config import CONVENTIONS
from mixer_equiv.errors import ConfigError
from mixer_equiv.layouts import Conventions

# What the hub's Trainer leaves beside a model that it trained.
_OF_TRAINING = ("trainer_state.json", "training_args.bin")


class Names(NamedTuple):
    """Names by which weights may be known, and notes."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def names_of(path: Path) -> Names:
    """The release in the hub's config.json, the file's name, its folders'; none for weights trained further."""
    path = path.absolute()
    folder = path if path.is_dir() else path.parent
    named = (path.name, *(parent.name for parent in list(path.parents)[:3]))
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        told = json.loads((folder / "config.json").read_text())
        release = f"{told['architecture']}.{told['pretrained_cfg']['tag']}"
        if _has_other_classes(told) or any((folder / file).exists() for file in _OF_TRAINING):
            note = f"by config.json it began as {release} and was trained further; by which code is not recorded"
            return Names((), (note,))
        return Names((release, *named))
    return Names(named)


def _has_other_classes(told: Mapping[str, Any]) -> bool:
    """Whether a config.json tells of another number of classes than its release has."""
    of_release = told["pretrained_cfg"].get("num_classes")
    of_model = [told.get("num_classes"), len(told["id2label"]) if told.get("id2label") else None]
    return of_release is not None and any(count not in (None, of_release) for count in of_model)


class Computed(NamedTuple):
    """Conventions that a file's modules compute, None where they do not tell all of them, and notes."""

    conventions: Conventions | None
    notes: tuple[str, ...] = ()


def conventions_of(settings: Mapping[str, Any]) -> Computed:
    """The conventions in the settings of modules, as a reader of files gives them."""
    if settings.keys() >= set(CONVENTIONS):
        with contextlib.suppress(ConfigError):
            conventions = Conventions(**settings)
            return Computed(conventions, (f"its modules compute {describe_conventions(conventions)}",))
    if not settings:
        return Computed(None)
    shown = ", ".join(_in_words(name, value) for name, value in settings.items())
    return Computed(None, (f"its modules compute {shown}, which does not tell what the weights were trained with",))


def _in_words(name: str, value: Any) -> str:
    return describe_activation(value) if name == "activation" else f"LayerNorm eps {value:g}"
