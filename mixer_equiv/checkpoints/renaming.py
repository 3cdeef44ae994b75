"""Renaming of arrays as the caller says: parts of names that are read, and prefixes of names that are written.

Start at `rename_parts` and `rename_prefixes`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mixer_equiv.checkpoints.names import NESTING, parents_of, path_of, with_one_separator
from mixer_equiv.errors import MAX_LISTED, ConversionError, summarize


def rename_parts(leaves: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """`leaves` with some parts of their names replaced, each wherever it stands: {"classifier": "head"}.

    What is replaced is one or more whole parts of a name, and so is what it becomes; nothing takes it out. Raises
    `ConversionError` for what no name has, and for two names that become one.
    """
    result: dict[str, Any] = {}
    origin: dict[str, str] = {}
    by_parts = {with_one_separator(old): new for old, new in renamed.items()}
    used: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        old = with_one_separator(match[0])
        used.add(old)
        return by_parts[old]

    pattern = _whole_parts(renamed)
    for name, leaf in leaves.items():
        path = path_of(name)  # in which parts can be told from one another
        new = pattern.sub(replace, path) if renamed else path
        new = name if new == path else _without_empty_parts(new)
        if new in result:
            raise ConversionError(f"rename= (--rename) makes {origin[new]} and {name} both {new!r}")
        result[new], origin[new] = leaf, name
    for old in renamed:
        if with_one_separator(old) not in used:
            raise ConversionError(
                f"rename= (--rename) {old!r}: no name has this part; the names are {summarize(sorted(leaves))}"
            )
    return result


def _whole_parts(olds: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(olds, key=len, reverse=True)
    parts = "|".join(r"[./]".join(map(re.escape, re.split(r"[./]", old))) for old in longest_first)
    return re.compile(rf"(?:^|(?<=[./]))(?:{parts})(?=[./]|$)")


def _without_empty_parts(name: str) -> str:
    return re.sub(r"^[./]|[./]$|([./])[./]+", r"\1", name)


def rename_prefixes(names: Collection[str], prefixes: Mapping[str, str]) -> dict[str, str]:
    """Give each of `names` a new one, with the longest of `prefixes` that it begins with replaced, once.

    Raises `ConversionError` for a prefix that no name has, and for two names that become one.
    """
    result = {}
    for name in names:
        old = max((old for old in prefixes if name.startswith(old)), key=len, default=None)
        result[name] = name if old is None else prefixes[old] + name.removeprefix(old)
    for old in prefixes:
        if not any(name.startswith(old) for name in names):
            raise ConversionError(f"rename_prefix {old!r}: no name begins so; they begin as {next(iter(names), '')}")
    twice = [name for name, count in Counter(result.values()).items() if count > 1]
    if twice:
        raise ConversionError(f"rename_prefix makes several names the same: {', '.join(twice[:MAX_LISTED])}")
    empty = [name for name, new in result.items() if "" in new.split(NESTING)]
    if empty:
        raise ConversionError(f"rename_prefix leaves an empty name of {', '.join(empty[:MAX_LISTED])}")
    below = names_below_another(result.values())
    if below:
        listed = ", ".join(below[:MAX_LISTED])
        raise ConversionError(f"rename_prefix puts arrays below another, where no nested file can have both: {listed}")
    return result


def names_below_another(names: Iterable[str]) -> list[str]:
    """Find names of which another is a parent, as "a/b" is of "a/b/c": no nested dict has both."""
    names = set(names)
    return sorted(name for name in names if any(parent in names for parent in parents_of(name, NESTING)))
