"""`recorded`: a decorator that puts into a report what made it, as a `Provenance`. Start there.

Knows how a call of `verify` is written, and where the code and the files of its arguments are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import inspect
import itertools
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from mixer_equiv.checkpoints.checkpoint import IN_MEMORY, Checkpoint
from mixer_equiv.checkpoints.provenance import FileDigest, Provenance
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.policy import Policy
from mixer_equiv.equivalence.report import Report
from mixer_equiv.equivalence.sides.adapters import is_model
from mixer_equiv.equivalence.sides.code_files import code_files, collecting_models
from mixer_equiv.equivalence.sides.locate import is_maker, is_source, source_file
from mixer_equiv.equivalence.sides.resolve import BuiltInName
from mixer_equiv.shown_paths import without_private_parts
from mixer_equiv.versions import versions

Arguments = ParamSpec("Arguments")

# A mapping or sequence whose text is longer is shown by its type.
_LONGEST_VALUE = 200


def recorded(function: Callable[Arguments, Report]) -> Callable[Arguments, Report]:
    """Have the reports of `function` say by which call, versions and files they were made."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Report:
        with collecting_models() as made:
            report = function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        call = _call_text(function.__name__, bound.args, bound.kwargs)
        bound.apply_defaults()
        return dataclasses.replace(report, provenance=_provenance(call, bound.arguments, made))

    return wrapper


def _provenance(call: str, arguments: Mapping[str, Any], made: Sequence[Any]) -> Provenance:
    """The provenance of a call with these `arguments`, in which the models `made` were made."""
    given = [arguments[name] for name in ("a", "b", "weights")]
    within = itertools.chain.from_iterable(map(_code_within, (*given, *made)))
    return Provenance(
        call=call,
        seed=arguments["seed"],
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions={"python": platform.python_version(), **versions()},
        files=_digests(map(_checkpoint_path, given)),
        sources=_digests((*map(_code_path, given), *within)),
    )


def _digests(paths: Iterable[Path | None]) -> tuple[FileDigest, ...]:
    """The digests of those paths that exist, each once."""
    existing = {path.resolve(): path for path in paths if path is not None and os.path.exists(path)}
    return tuple(FileDigest.of(path) for path in existing.values())


def _checkpoint_path(given: Any) -> Path | None:
    """The path behind a checkpoint, or given as one."""
    if isinstance(given, Checkpoint):
        return None if given.source == IN_MEMORY else Path(given.source)
    is_word = isinstance(given, str) and (given in ("given", "random") or is_source(given) or BuiltInName.of(given))
    return None if is_word or not isinstance(given, str | os.PathLike) else Path(given)


def _code_path(given: Any) -> Path | None:
    """The file with the code of a model, of what makes one, or of the place of one; None where it cannot be told."""
    with contextlib.suppress(Exception):  # whatever somebody's module does when it is asked for a name
        if is_maker(given) or is_model(given) or (isinstance(given, str) and is_source(given)):
            return source_file(given)
    return None


def _code_within(given: Any) -> list[Path]:
    """The files with the code of a model and of its modules; none where they cannot be told."""
    with contextlib.suppress(Exception):  # as above
        return code_files(given)
    return []


# The call in words


def _call_text(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    shown = [_shown(value) for value in args]
    shown += [f"{key}={_shown(value)}" for key, value in kwargs.items() if key != "on_step"]
    return without_private_parts(f"{name}({', '.join(shown)})")


def _shown(value: Any) -> str:
    """A value as code, where it is plain; else the name of a function or class, or of the type: `TheirMixer(...)`."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if is_maker(value):
        return str(getattr(value, "__name__", "partial(...)"))
    text = _parts_shown(value)
    return text if text and len(text) <= _LONGEST_VALUE else f"{type(value).__name__}(...)"


def _parts_shown(value: Any) -> str:
    """A dict, list, tuple or configuration as code, without the fields that are at their defaults; else nothing."""
    if type(value) is dict:
        return f"{{{', '.join(f'{key!r}: {_shown(item)}' for key, item in value.items())}}}"
    if type(value) in (list, tuple):
        left, right = "[]" if type(value) is list else "()"
        return f"{left}{', '.join(map(_shown, value))}{',' * (left == '(' and len(value) == 1)}{right}"
    if isinstance(value, MixerConfig | Policy):
        held = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = [f"{field.name}={_shown(item)}" for field, item in held.items() if item != field.default]
        return f"{type(value).__name__}({', '.join(changed)})"
    return ""
