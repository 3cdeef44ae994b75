"""`shown_path` and `without_private_parts`: paths and addresses as a report may show them; `is_installed`.

Nothing in them tells who made the report or where: paths are relative to the current folder, and addresses have no
credentials and no query.
"""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from pathlib import Path

# Folders in which packages are installed.
INSTALLED = ("site-packages", "dist-packages")


def is_installed(file: Path) -> bool:
    """Whether a file is of an installed package or of Python itself, and so not of the user."""
    return any(part in INSTALLED for part in file.parts) or not _python().isdisjoint(file.resolve().parents)


@functools.cache
def _python() -> frozenset[Path]:
    return frozenset(Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib"))


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as a report may show it.

    It is relative to the current folder, or to the folder of installed packages; outside of both the name alone.
    """
    absolute = Path(os.path.abspath(os.path.expanduser(path)))
    installed = [number for number, part in enumerate(absolute.parts) if part in INSTALLED]
    if installed:
        return Path(*absolute.parts[installed[-1] + 1 :]).as_posix()
    here, home = Path.cwd(), Path.home()
    leads_home = absolute.is_relative_to(home) and not here.is_relative_to(home)  # such as from the root
    if absolute.is_relative_to(here) and not leads_home:
        return absolute.relative_to(here).as_posix()
    return "~" if absolute == home else absolute.name


# An address, and a path that may leave the current folder; neither may begin within a word, as in "flax:B/16".
_PRIVATE = re.compile(
    r"(?<![^\s'\"=:,(\[{])"
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[^\s/@'\"]*@)?(?P<place>[^\s?#'\"]*)[^\s'\"]*"
    r"|(?P<path>(?:~|\.\.)?/[^\s'\":,)\]}]+))",
    re.IGNORECASE,
)


def without_private_parts(text: str) -> str:
    """Shorten the paths in `text` as `shown_path` does, and take credentials and queries out of addresses."""
    return _PRIVATE.sub(_shortened, text)


def _shortened(match: re.Match[str]) -> str:
    if match["path"] is not None:
        return shown_path(match["path"])
    place = shown_path(match["place"]) if match["scheme"].lower() == "file" else match["place"]
    return f"{match['scheme']}://{place}"
