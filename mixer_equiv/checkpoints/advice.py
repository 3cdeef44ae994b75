"""What to type for arrays that do not fill a layout: options that rename parts of names, or leave arrays out.

Guesses by names and shapes, and reads no array. Start at `guess_in_layout` and `globs_of`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from mixer_equiv.checkpoints.names import with_one_separator
from mixer_equiv.errors import MAX_LISTED
from mixer_equiv.layouts import Layout
from mixer_equiv.layouts.base import Shape

# Names are compared each with each; of more than so many, the layout is another one.
MAX_COMPARED = 600

# Whether an array may be the parameter: both by their names.
MayBe = Callable[[str, str], bool]


class _Rename(NamedTuple):
    """Some parts of names with what they would be in the layout, the arrays that change, and their names there."""

    old: str
    new: str
    arrays: frozenset[str]
    places: frozenset[str]

    @property
    def kind(self) -> tuple[str, str]:
        """Both names without their numbers."""
        return _unnumbered(self.old), _unnumbered(self.new)

    @property
    def likeness(self) -> float:
        return _likeness(*self.kind)

    def rivals(self, other: _Rename) -> bool:
        """Whether neither is likelier than the other, as far as names with half of their letters in common can tell."""
        return max(self.likeness, other.likeness) < 0.5 or abs(self.likeness - other.likeness) < 0.1

    def is_free(self, taken: set[str]) -> bool:
        return taken.isdisjoint(self.arrays | self.places)


@lru_cache(maxsize=10_000)
def _likeness(old: str, new: str) -> float:
    return difflib.SequenceMatcher(None, old, new).ratio()


class Guesses(NamedTuple):
    """Parts of names with what they are called in the layout; of `doubts` several are likely, or for several parts."""

    renames: dict[str, str]
    doubts: dict[str, list[str]]

    def in_words(self) -> list[str]:
        """What to type, in a line for all renames together and one for each doubt."""
        lines = []
        if self.renames:
            typed = " ".join(f"--rename {old}={new}" for old, new in self.renames.items())
            pairs = ", ".join(f"{old} is {new}" for old, new in self.renames.items())
            lines.append(f"probably renamed, {pairs}: pass rename={self.renames} ({typed})")
        for old, news in list(self.doubts.items())[:MAX_LISTED]:
            options = " or ".join(f"--rename {old}={new}" for new in news)
            lines.append(f"perhaps renamed, {old} is {' or '.join(news)}: say which with rename= ({options})")
        return lines


def guess_in_layout(layout: Layout, depth: int, shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> Guesses:
    """Guess which parts of names that are not of `layout` are called otherwise there, as far as `sizes` are known."""
    parameters = layout.parameters(depth)
    known = {axis: size for axis, size in sizes.items() if size}  # a head that was not found has 0 classes

    def may_be(stranger: str, name: str) -> bool:
        numbered = not parameters[name].row.in_block or _numbers(stranger)
        return bool(numbered) and parameters[name].may_have(shapes[stranger], known)

    theirs, ours = ({with_one_separator(name): name for name in names} for names in (shapes, parameters))
    strangers = [name for read, name in theirs.items() if read not in ours]
    absent = [name for read, name in ours.items() if read not in theirs]
    return guess_renames(strangers, absent, [name for read, name in theirs.items() if read in ours], may_be)


def guess_renames(strangers: Collection[str], absent: Collection[str], own: Collection[str], may_be: MayBe) -> Guesses:
    """Guess which parts of the names of `strangers` are called otherwise in the layout.

    `absent` are names of parameters without an array, and `own` those that have one. A guess gives each array whose
    name it changes the place of an absent parameter that it `may_be`. All guesses hold together.
    """
    guesses = Guesses({}, {})
    if max(len(strangers), len(absent)) > MAX_COMPARED:
        return guesses
    words = {part for name in (*absent, *own) for part in _parts(name)}
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in absent:
        alike.setdefault(_fixed(name), []).append(name)
    near = [(stranger, name) for stranger in strangers for name in alike.get(_fixed(stranger), ())]
    pairs = {pair for stranger, name in near if (pair := _difference(stranger, name, words))}
    by_name = {with_one_separator(name): name for name in absent}
    possible = [_rename(old, new, strangers, by_name, own, may_be) for old, new in pairs]
    likely = _by_number([one for one in possible if one is not None])
    likely.sort(key=lambda one: (-one.likeness, one.old, one.new))
    taken: set[str] = set()
    for size in sorted({len(one.places) for one in likely}, reverse=True):
        taken |= _guess_among([one for one in likely if len(one.places) == size and one.is_free(taken)], guesses)
    return guesses


def _guess_among(likely: list[_Rename], guesses: Guesses) -> set[str]:
    """Add to `guesses` what can be told of renames of as many arrays each; return all names that these are about."""
    names = {name for one in likely for name in one.arrays | one.places}
    while sure := next((one for one in likely if _is_sure(one, likely)), None):
        guesses.renames[sure.old] = sure.new
        likely = [one for one in likely if one.is_free({*sure.arrays, *sure.places})]
    for one in likely:
        guesses.doubts.setdefault(one.old, []).append(one.new)
    return names


def _is_sure(one: _Rename, likely: list[_Rename]) -> bool:
    """Whether nothing else is as likely for its arrays, and no other arrays would be left without a place for it."""
    if any(other.old == one.old and other != one and other.rivals(one) for other in likely):
        return False
    contenders = {other.old for other in likely if other.old != one.old and not other.places.isdisjoint(one.places)}
    return contenders <= {other.old for other in likely if other.places.isdisjoint(one.places)}


def _fixed(name: str) -> tuple[str, ...]:
    """What no guess changes: the numbers that are parts of a name, and its last part."""
    *parts, last = _parts(name)
    return (*(part for part in parts if part.isdigit()), last)


def _difference(stranger: str, name: str, words: set[str]) -> tuple[str, str] | None:
    """The parts in which two names with the same last part differ.

    None where they can be no rename: a part that the layout has too, one of `words`, stands for itself, and so does
    the number of a part that is the same but for it. So no guess moves an array to another block.
    """
    both = [re.split(r"([./])", one) for one in (stranger, name)]
    theirs, ours = ([with_one_separator(part) for part in parts] for parts in both)
    end = 0
    while end < min(len(theirs), len(ours)) - 1 and theirs[-1 - end] == ours[-1 - end]:
        end += 1
    begin = 0
    while begin < min(len(theirs), len(ours)) - end - 1 and theirs[begin] == ours[begin]:
        begin += 1
    old, new = ("".join(parts[begin : len(parts) - end]).strip("./") for parts in both)
    if not (old and new) or not words.intersection(_parts(old)) <= set(_parts(new)):
        return None
    numbered = [{_unnumbered(part): part for part in _parts(one) if not part.isdigit()} for one in (old, new)]
    differing = [kind for kind in numbered[0].keys() & numbered[1].keys() if numbered[0][kind] != numbered[1][kind]]
    return None if differing else (old, new)


_COUNT = "#"


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", _COUNT, name)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _by_number(possible: Collection[_Rename]) -> list[_Rename]:
    """Keep, of renames that differ in numbers alone, those that keep the numbers, or count from 0 in place of 1.

    Where shapes have left only some of them possible, shapes decide.
    """
    kinds: dict[tuple[str, str], list[_Rename]] = {}
    for one in possible:
        kinds.setdefault(one.kind, []).append(one)
    return [one for kind in kinds.values() for one in _in_step(kind)]


def _in_step(kind: list[_Rename]) -> list[_Rename]:
    olds, news = (
        {_numbers(name) for name in names} for names in zip(*((one.old, one.new) for one in kind), strict=True)
    )
    if olds == {()} or news == {()} or len(kind) < len(olds) * len(news):
        return kind
    columns = [[set(column) for column in zip(*numbers, strict=True)] for numbers in (olds, news)]
    steps = list(map(_step, *columns)) if len(columns[0]) == len(columns[1]) else [None]
    if None in steps:
        return kind if len(news) > 1 else []
    return [one for one in kind if [b - a for a, b in zip(_numbers(one.old), _numbers(one.new), strict=True)] == steps]


def _step(theirs: set[int], ours: set[int]) -> int | None:
    """What is added to their numbers to make them ours, where both count the same things from 0 or 1; else None."""
    if theirs == ours:
        return 0
    step = min(ours) - min(theirs)
    counts = len(ours) > 1 and {min(theirs), min(ours)} == {0, 1}
    return step if counts and {number + step for number in theirs} == ours else None


def _rename(
    old: str, new: str, strangers: Collection[str], absent: Mapping[str, str], own: Collection[str], may_be: MayBe
) -> _Rename | None:
    """The rename if each name that it changes becomes that of an absent parameter of its own; None if not.

    `absent` has the names of parameters by the same names with one separator.
    """
    part = re.compile(rf"(?:^|(?<=[./])){re.escape(old)}(?=[./]|$)")
    if any(old in name and part.search(name) for name in own):
        return None
    arrays = [name for name in strangers if old in name and part.search(name)]
    places = {absent.get(with_one_separator(part.sub(lambda _: new, name))): name for name in arrays}
    if len(places) < len(arrays) or not all(name and may_be(array, name) for name, array in places.items()):
        return None
    return _Rename(old, new, frozenset(arrays), frozenset(filter(None, places)))


def globs_of(strangers: Collection[str], own: Collection[str]) -> list[str]:
    """Few globs that match all of `strangers` and none of `own`, such as "text.*" and "blocks.*.gate.*".

    They match none of `own` with other separators either, which the file may have.
    """
    globs: list[str] = []
    own = [name.replace(old, new) for name in own for old, new in (("", ""), (".", "/"), ("/", "."))]
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
