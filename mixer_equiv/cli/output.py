"""Results on the standard output and in files.

Files are checked by name before anything is computed, and replaced whole or not at all.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_equiv.errors import ConfigError, MixerEquivError

if TYPE_CHECKING:
    from rich.console import RenderableType

# The name of a file that means the standard output, and the options that take it.
_STDOUT = "-"
_TO_STDOUT = ("--json", "--markdown")
_WIDTH_OF_A_PIPE = 110

# What options write: the file that was asked for, if any, and what makes its text.
Written = Mapping[str, tuple[str | Path | None, Callable[[], str]]]


def show(drawn: RenderableType, plain: dict[str, Any], json_file: str | None, others: Written | None = None) -> None:
    """Print a result as it is `drawn`, a string as one line, and write it as JSON and as `others` where it is asked.

    What is written to the standard output, "-", takes the place of the drawing.
    """
    written = {**(others or {}), "--json": (json_file, lambda: json.dumps(plain, indent=2, allow_nan=False) + "\n")}
    to_stdout = [make for file, make in written.values() if str(file) == _STDOUT]
    for option, (file, make) in written.items():
        if file is not None and str(file) != _STDOUT:
            write_file(option, Path(file), make())
    if to_stdout:
        write(to_stdout[0]())
    elif isinstance(drawn, str):
        say(drawn)
    else:
        draw(drawn)


def check_outputs(files: Mapping[str, str | Path | None], is_quiet: bool = False) -> None:
    """Refuse files that cannot be written, by the options that name them, before hours are spent on what is in them.

    Of the options for the standard output, `is_quiet` for `--quiet` among them, one may be given.
    """
    given = {option: Path(file) for option, file in files.items() if file is not None}
    to_stdout = [option for option, path in given.items() if option in _TO_STDOUT and str(path) == _STDOUT]
    if len(to_stdout) + is_quiet > 1 and to_stdout:
        said = [*(f"{option} {_STDOUT}" for option in to_stdout), *["--quiet"] * is_quiet]
        together = f"{', '.join(said[:-1])} and {said[-1]} {'both' if len(said) == 2 else 'all'}"
        raise ConfigError(
            f"{together} write to the standard output, which takes one of them; give a file in place of "
            f"'{_STDOUT}', or leave one out"
        )
    for option in to_stdout:
        del given[option]
    for option, path in given.items():
        _check_output(option, path)
    by_place = {path.resolve(): option for option, path in given.items()}
    for option, path in given.items():
        if by_place[path.resolve()] != option:
            raise ConfigError(f"{option} and {by_place[path.resolve()]} are both {path}; give each a file of its own")


def _check_output(option: str, path: Path) -> None:
    from mixer_equiv.checkpoints.formats import SUFFIXES

    if str(path) == _STDOUT:
        takers = " and ".join(_TO_STDOUT)
        raise ConfigError(f"{option} is {path}; only {takers} go to the standard output, give a file")
    if path.name.lower().endswith(SUFFIXES):
        suggested = option.replace("--", ".")
        raise ConfigError(f"{option} is {path}, by its suffix a checkpoint; give it another one, such as {suggested}")
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a pipe or a device"
        raise ConfigError(f"{option} is {path}, {kind}; give the name of a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        reason = "may not be written to" if path.parent.is_dir() else "is no directory"
        raise ConfigError(f"{option} is {path}, which cannot be written: {path.parent} {reason}")


def write_file(option: str, path: Path, text: str) -> None:
    """Write or replace the file that `option` names."""
    from mixer_equiv.atomic import replacement

    check_outputs({option: path})
    with replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw(drawn: RenderableType) -> None:
    """Print what rich can draw, to the width of the terminal; in a pipe that of `COLUMNS`, without trailing blanks."""
    from rich.console import Console

    terminal = Console()
    is_wide = not terminal.is_terminal and "COLUMNS" not in os.environ
    stream, width = io.StringIO(), _WIDTH_OF_A_PIPE if is_wide else terminal.width
    # Rendered first and written by `write`, because rich makes a failing output exit status 1.
    Console(file=stream, force_terminal=terminal.is_terminal, width=width, highlight=False).print(drawn)
    text = stream.getvalue()
    write(text if terminal.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def warn(line: str) -> None:
    """Print one line on stderr."""
    from rich.console import Console

    Console(stderr=True).print(line, markup=False, soft_wrap=True)


def say(line: str) -> None:
    """Print one line."""
    write(f"{line}\n")


def write(text: str) -> None:
    """Write text to the standard output; a reader that has seen enough is no error, a full disk is."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The text that is still buffered must not fail once more when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise MixerEquivError(f"the output cannot be written: {error.strerror}") from error
