"""How the names and shapes of arrays can be read, and which reading is a Mixer in a known layout.

The names as they are come first. Then `names.ENTRIES` are undone and separators are all taken for one; and leading axes
are taken for stacked blocks, and for equal copies. A reading fits if a layout accounts for its names and their ranks.
Reads no array. Start at `choose_reading`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import is_array, shapes_of
from mixer_equiv.checkpoints.advice import guess_in_layout
from mixer_equiv.checkpoints.leading_axes import stacked_blocks, without_copies
from mixer_equiv.checkpoints.names import (
    Undone,
    entries_of,
    select_below,
    undo_entries,
    with_one_separator,
)
from mixer_equiv.checkpoints.renaming import rename_parts
from mixer_equiv.errors import LayoutError
from mixer_equiv.layouts import Layout, LayoutMatch, detect
from mixer_equiv.layouts.base import PLACES, Row, Shape, axis_groups
from mixer_equiv.layouts.detect import SeveralSetsError, UnknownLayoutError


@dataclasses.dataclass(frozen=True)
class Reading:
    """Leaves under the names by which they are read.

    `given` has the name in the file of each, with a place behind it for a part of a stack, and `spelled` the name
    before its separators were changed. `notes` say what was undone.
    """

    leaves: Mapping[str, Any]
    given: Mapping[str, str]
    spelled: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the arrays among the leaves."""
        return shapes_of(self.leaves)


class ChosenReading(NamedTuple):
    """Leaves in the spelling of the layout that was found, and notes on what was undone.

    `given` has the name in the file of each leaf. `beside` are names that are not under the caller's prefix.
    """

    leaves: dict[str, Any]
    match: LayoutMatch
    notes: list[str]
    given: dict[str, str]
    beside: list[str]


class _Fit(NamedTuple):
    """A match in a reading. `departures` counts parameters that are absent or of another rank."""

    reading: Reading
    match: LayoutMatch
    departures: int

    @property
    def is_full(self) -> bool:
        return not self.departures

    @property
    def own(self) -> set[str]:
        """Names of the arrays that are parameters, or stacks of them."""
        names = self.match.names
        bases = {PLACES.sub("", name) for name in names} if self.match.layout.stacks else set()
        return self.reading.shapes.keys() & (names | bases)

    @property
    def accounts_for_all(self) -> bool:
        """Whether every array is a parameter of it."""
        return len(self.own) == len(self.reading.shapes)

    @property
    def score(self) -> int:
        """How many arrays of the file are parameters, less the departures."""
        return len({PLACES.sub("", self.reading.given[name]) for name in self.own}) - self.departures


@dataclasses.dataclass
class _Search:
    """Fits and errors of the readings so far, in order; `unknown` are those of no known layout."""

    prefix: str | None
    fits: list[_Fit] = dataclasses.field(default_factory=list)
    errors: list[LayoutError] = dataclasses.field(default_factory=list)
    unknown: list[tuple[UnknownLayoutError, Reading]] = dataclasses.field(default_factory=list)

    def add(self, reading: Reading, layouts: Sequence[Layout]) -> None:
        try:
            match = detect(reading.shapes, layouts, reading.shapes, told_prefix=self.prefix)
        except UnknownLayoutError as error:
            self.unknown.append((error, reading))
        except LayoutError as error:
            self.errors.append(error)
        else:
            self.fits.append(_Fit(reading, match, _departures(match, reading.shapes)))

    @property
    def full(self) -> list[_Fit]:
        return [fit for fit in self.fits if fit.is_full]

    def best(self) -> _Fit:
        """The fit to take. Raises `LayoutError` where none, or several, are to be taken."""
        surest = next((fit for fit in self.full if fit.accounts_for_all), None)
        if surest is None:
            for error in self.errors:
                if isinstance(error, SeveralSetsError) or (isinstance(error, LostOrderError) and self._concerns(error)):
                    raise error
        if self.full:
            _check_same_weights(self.full)
            return surest or max(self.full, key=lambda fit: fit.match.found)
        if self.errors:
            raise self.errors[0]
        if self.fits:
            return max(self.fits, key=lambda fit: fit.score)
        unknown = sorted(self.unknown, key=lambda pair: -pair[0].score)
        advice = filter(None, (_renames_in_words(error.nearest, reading) for error, reading in unknown))
        nearest = unknown[0][0]
        raise UnknownLayoutError("\n  ".join([str(nearest), *next(advice, [])]), nearest.nearest)

    def _concerns(self, error: LostOrderError) -> bool:
        """Whether modules of lost order are among those of a fit that is full otherwise."""
        return any(not fit.match.names.isdisjoint(error.names) for fit in self.full)


def choose_reading(leaves: Mapping[str, Any], layouts: Collection[Layout], prefix: str | None = None) -> ChosenReading:
    """Find the reading of `leaves` that fits one of `layouts`, the plainest one of several that are the same weights.

    Where none fits entirely, it is the one with the fewest departures. `prefix` tells which of several sets of weights
    is meant, by names as they are or as they are read. Raises `LayoutError` if no layout is near, and if several
    readings, sets or layouts fit that are not the same weights.
    """
    by_name = {layout.name: layout for layout in layouts}
    chosen = _select(leaves, prefix)
    search = _Search(prefix)
    search.add(Reading(chosen, _same(chosen), _same(chosen)), list(by_name.values()))
    if not search.full or not search.full[0].accounts_for_all:
        for own_entries, group in _by_entries(by_name.values()).items():
            undone = _undo_names(chosen, own_entries)
            search.errors += [SeveralReadingsError(clash) for clash in undone.clashes]
            search.errors += [LostOrderError(words, names) for names, words in undone.lost_orders.items()]
            _add_undone(search, _undo(chosen, undone), list(map(_with_one_separator, group)))
    fit = search.best()
    return _in_spelling(fit, by_name[fit.match.layout.name], [name for name in leaves if name not in chosen])


class SeveralReadingsError(LayoutError):
    """Names that can be read in several ways, which are not the same weights."""


class LostOrderError(LayoutError):
    """Two `names` of modules whose order names do not tell."""

    def __init__(self, message: str, names: tuple[str, str]) -> None:
        super().__init__(message)
        self.names = names


def _select(leaves: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    """Select the leaves whose names are below `prefix`, as they are or else without what can be undone."""
    try:
        return dict(select_below(leaves, prefix))
    except LayoutError:
        undone = _undo_names(leaves).names
        given = {undone.get(name, name): name for name in leaves}
        return {name: leaves[name] for name in select_below(given, prefix).values()}


def _renames_in_words(nearest: LayoutMatch | None, reading: Reading) -> list[str]:
    """What to type if names that are called otherwise make up for what the nearest layout lacks."""
    if nearest is None:
        return []
    shapes = {name: own.shape for name, own in _own(nearest, reading.shapes).items()}
    sizes = nearest.layout.axis_sizes(nearest.num_blocks, shapes)
    guesses = guess_in_layout(nearest.layout, nearest.num_blocks, shapes, sizes)
    parameters = nearest.layout.parameters(nearest.num_blocks)
    strangers = {name: name for name in shapes if name not in parameters}
    placed = sum(name in parameters for name in rename_parts(strangers, guesses.renames))
    return guesses.in_words() if nearest.score + 2 * placed >= 0 else []


def _undo_names(leaves: Mapping[str, Any], but: Collection[str] = ()) -> Undone:
    return undo_entries([name for name, leaf in leaves.items() if is_array(leaf)], but)


def _by_entries(layouts: Iterable[Layout]) -> dict[frozenset[str], list[Layout]]:
    """Layouts by the entries that their own names have, as one whose code calls something "module" has."""
    result: dict[frozenset[str], list[Layout]] = {}
    for layout in layouts:
        result.setdefault(_own_entries(layout.rows), []).append(layout)
    return result


@cache
def _own_entries(rows: tuple[Row, ...]) -> frozenset[str]:
    return entries_of([row.foreign for row in rows])


def _same(names: Collection[str]) -> dict[str, str]:
    return {name: name for name in names}


# Further readings


def _add_undone(search: _Search, reading: Reading, layouts: Sequence[Layout]) -> None:
    """Add `reading`, and those in which leading axes of its arrays count blocks or copies."""
    search.add(reading, layouts)
    _add_stacked(search, reading, layouts)
    if not search.full and (single := without_copies(reading.leaves, reading.given)) is not None:
        note = f"every array was taken for {single.number} equal copies, as of so many devices, and the first one read"
        reading = dataclasses.replace(reading, leaves=single.leaves, notes=(*reading.notes, note))
        search.add(reading, layouts)
        _add_stacked(search, reading, layouts)


def _add_stacked(search: _Search, reading: Reading, layouts: Sequence[Layout]) -> None:
    for layout in layouts:
        try:
            stacked = stacked_blocks(reading.leaves, layout)
        except LayoutError as error:
            search.errors.append(SeveralReadingsError(str(error)))
            continue
        if stacked is not None:
            sources = {name: stacked.sources.get(name, name) for name in stacked.leaves}
            given = {name: reading.given[source] + stacked.places.get(name, "") for name, source in sources.items()}
            spelled = {name: reading.spelled.get(name, name) for name in stacked.leaves}
            search.add(Reading(stacked.leaves, given, spelled, (*reading.notes, *stacked.notes)), [layout])


def _undo(leaves: Mapping[str, Any], undone: Undone) -> Reading:
    """Read `leaves` without what can be undone in names, and with one separator where no two then have one name."""
    arrays_last = sorted(leaves, key=lambda name: is_array(leaves[name]))  # and so of two of one name the array is kept
    spelled = {given: undone.names.get(given, given) for given in arrays_last}
    names = {given: with_one_separator(name) for given, name in spelled.items()}
    if len(set(names.values())) < len(names):
        names = spelled
    return Reading(
        {names[given]: leaves[given] for given in arrays_last},
        {name: given for given, name in names.items()},
        {name: spelled[given] for given, name in names.items()},
        tuple(undone.notes),
    )


def _with_one_separator(layout: Layout) -> Layout:
    rows = tuple(dataclasses.replace(row, foreign=with_one_separator(row.foreign)) for row in layout.rows)
    distinct = len({row.foreign for row in rows}) == len({row.foreign for row in layout.rows})
    return dataclasses.replace(layout, rows=rows) if distinct else layout


# Fits


class _Own(NamedTuple):
    """A parameter in a reading: the name of its array there, and its shape as the layout's table has it."""

    name: str
    shape: Shape


def _own(match: LayoutMatch, shapes: Mapping[str, Shape]) -> dict[str, _Own]:
    """Arrays behind the prefix of a match by the names of the layout's table."""
    own = match.own_shapes(shapes)
    tidied = {name: (name, shape) for name, shape in own.items()}
    if match.layout.tidy is not None:
        tidied = match.layout.tidy(match.layout, match.num_blocks, own)
    return {new: _Own(match.prefix + name, shape) for name, (new, shape) in tidied.items()}


def _departures(match: LayoutMatch, shapes: Mapping[str, Shape]) -> int:
    own = _own(match, shapes)
    count = 0
    for name, binding in match.layout.parameters(match.num_blocks).items():
        if name not in own:
            count += not binding.row.in_head
        else:
            count += len(own[name].shape) != len(axis_groups(binding.row.foreign_axes))
    return count


def _check_same_weights(fits: Sequence[_Fit]) -> None:
    """Raise `SeveralReadingsError` if some of `fits` have not the same arrays, in the same axes, as the first.

    A head may be in some of them alone.
    """
    first, *others = fits
    wanted = _sources(first)
    for other in others:
        found = _sources(other)
        if any(found[name] != wanted[name] for name in found.keys() & wanted.keys()):
            raise SeveralReadingsError(
                f"these names and shapes can be read in two ways, which are not the same weights: {_in_words(first)}; "
                f"or {_in_words(other)}; say which with layout= (--from), prefix= (--prefix) or rename= (--rename)"
            )


def _sources(fit: _Fit) -> dict[str, tuple[str, Shape, str]]:
    """The name in the file of each parameter, its shape, and its axes, by canonical name."""
    own = _own(fit.match, fit.reading.shapes)
    return {
        binding.canonical: (
            fit.reading.given.get(own[binding.foreign].name, own[binding.foreign].name),
            own[binding.foreign].shape,
            f"{binding.row.foreign_axes} -> {binding.row.canonical_axes}",
        )
        for binding in fit.match.layout.bindings(fit.match.num_blocks).values()
        if binding.foreign in own
    }


def _in_words(fit: _Fit) -> str:
    how = "; ".join(fit.reading.notes) or "as they are"
    return f"in the layout {fit.match.layout.name}, {fit.match.num_blocks} blocks, {how}"


def _in_spelling(fit: _Fit, layout: Layout, beside: list[str]) -> ChosenReading:
    """Give the names of a fit the separators of `layout`, and those that are not of it the ones that they had."""
    reading, match = fit.reading, fit.match
    if match.layout is layout:
        return ChosenReading(dict(reading.leaves), match, list(reading.notes), dict(reading.given), beside)
    both = zip(match.layout.parameters(match.num_blocks), layout.parameters(match.num_blocks), strict=True)
    own = {PLACES.sub("", read): PLACES.sub("", name) for read, name in both} if layout.stacks else dict(both)
    behind = {name: name.removeprefix(match.prefix) for name in reading.leaves if name.startswith(match.prefix)}
    first = next(name for name, rest in behind.items() if rest in own)
    prefix = reading.spelled[first][: len(match.prefix)]
    names = {name: reading.spelled[name] for name in reading.leaves}
    if layout.tidy is not None:  # which knows further names, of the same separators
        names |= {name: prefix + rest for name, rest in behind.items() if is_array(reading.leaves[name])}
    names |= {name: prefix + own[rest] for name, rest in behind.items() if rest in own}
    changed = [name for name, new in names.items() if behind.get(name) in own and new != reading.spelled[name]]
    notes = list(reading.notes)
    if changed:
        notes.append(
            f"separators were changed to those of {layout.name}: {reading.spelled[changed[0]]} is {names[changed[0]]}"
        )
    return ChosenReading(
        {names[name]: leaf for name, leaf in reading.leaves.items()},
        dataclasses.replace(match, layout=layout, prefix=prefix),
        notes,
        {names[name]: given for name, given in reading.given.items()},
        beside,
    )
