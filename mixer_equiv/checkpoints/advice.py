"""What to type for arrays that do not fill a layout: options that rename parts of names, or leave arrays out.

Guesses by names and shapes, and reads no array. Start at `guess_renames` and `globs_of`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection
from typing import NamedTuple

from mixer_equiv.checkpoints.names import rename_parts

# Names are compared each with each; of more than so many, the layout is another one.
MAX_COMPARED = 600

# Whether an array may be the parameter: both by their names.
MayBe = Callable[[str, str], bool]


class _Rename(NamedTuple):
    """Some parts of names with what they would be in the layout, and how many arrays it gives a place."""

    old: str
    new: str
    places: int

    @property
    def likeness(self) -> float:
        return difflib.SequenceMatcher(None, self.old, self.new).ratio()

    def rivals(self, other: _Rename) -> bool:
        """Whether neither is likelier than the other."""
        return self.places == other.places and abs(self.likeness - other.likeness) < 0.1


class Guesses(NamedTuple):
    """Parts of names with what they are called in the layout; `doubts` have several such names, none more likely."""

    renames: dict[str, str]
    doubts: dict[str, list[str]]


def guess_renames(strangers: Collection[str], absent: Collection[str], own: Collection[str], may_be: MayBe) -> Guesses:
    """Guess which parts of the names of `strangers` are called otherwise in the layout.

    `absent` are names of parameters without an array, and `own` those that have one. A guess gives each array whose
    name it changes the place of an absent parameter that it `may_be`. All guesses hold together.
    """
    guesses = Guesses({}, {})
    if max(len(strangers), len(absent)) > MAX_COMPARED:
        return guesses
    pairs = {pair for stranger in strangers for name in absent if (pair := _difference(stranger, name))}
    possible = [_rename(old, new, strangers, absent, own, may_be) for old, new in pairs]
    taken: set[str] = set()
    in_order = sorted(filter(None, possible), key=lambda one: (-one.places, -one.likeness, one.old, one.new))
    for one in in_order:
        places = set(_places(one.old, one.new, strangers))
        if one.old in guesses.renames or one.old in guesses.doubts or places & taken:
            continue
        rivals = [other.new for other in in_order if other.old == one.old and other.rivals(one)]
        free = [new for new in rivals if not set(_places(one.old, new, strangers)) & taken]
        if len(free) > 1:
            guesses.doubts[one.old] = sorted(free)
        else:
            guesses.renames[one.old] = one.new
            taken |= places
    return guesses


def _difference(stranger: str, name: str) -> tuple[str, str] | None:
    """The parts in which two names differ, if they have a part at the end in common."""
    theirs, ours = re.split(r"([./])", stranger), re.split(r"([./])", name)
    end = 0
    while end < min(len(theirs), len(ours)) - 1 and theirs[-1 - end] == ours[-1 - end]:
        end += 1
    begin = 0
    while begin < min(len(theirs), len(ours)) - end - 1 and theirs[begin] == ours[begin]:
        begin += 1
    old, new = ("".join(parts[begin : len(parts) - end]).strip("./") for parts in (theirs, ours))
    return (old, new) if end and old and new and _numbers(old) == _numbers(new) else None


def _numbers(name: str) -> list[str]:
    return [part for part in re.split(r"[./]", name) if part.isdigit()]


def _rename(
    old: str, new: str, strangers: Collection[str], absent: Collection[str], own: Collection[str], may_be: MayBe
) -> _Rename | None:
    """The rename if each name that it changes becomes that of an absent parameter; None if not."""
    part = re.compile(rf"(?:^|[./]){re.escape(old)}(?:[./]|$)")
    if any(map(part.search, own)):
        return None
    changed = _places(old, new, strangers)
    if not changed or not all(name in absent and may_be(stranger, name) for name, stranger in changed.items()):
        return None
    return _Rename(old, new, len(changed))


def _places(old: str, new: str, strangers: Collection[str]) -> dict[str, str]:
    """The new names of the strangers that a rename changes, with the old ones."""
    part = re.compile(rf"(?:^|[./]){re.escape(old)}(?:[./]|$)")
    changed = {name: name for name in strangers if part.search(name)}
    return rename_parts(changed, {old: new}) if changed else {}


def globs_of(strangers: Collection[str], own: Collection[str]) -> list[str]:
    """Few globs that match all of `strangers` and none of `own`, such as "text.*" and "blocks.*.gate.*"."""
    globs: list[str] = []
    own = list(own)
    for name in strangers:
        if not any(fnmatch.fnmatchcase(name, glob) for glob in globs):
            globs.append(next(glob for glob in _candidates(name) if not fnmatch.filter(own, glob)))
    return globs


def _candidates(name: str) -> list[str]:
    """Globs that match a name, from the widest to the name itself."""
    parts = re.split(r"([./])", _literal(name))
    general = [re.sub(r"^\d+$", "*", part) for part in parts]
    wide = ["".join([*general[:end], "*"]) for end in range(2, len(parts), 2)]
    return [*wide, "".join(general), _literal(name)]


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)
