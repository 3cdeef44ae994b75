"""`detect`: the layout, the prefix and the number of blocks of some arrays, from their names and shapes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from mixer_equiv.arrays.lazy import Spec
from mixer_equiv.arrays.stacking import split_stacks
from mixer_equiv.errors import MAX_LISTED, LayoutError, summarize
from mixer_equiv.layouts.base import Layout, Row, Shape
from mixer_equiv.layouts.families import family_of

# Names under which optax, Flax's old optimizers and torch keep arrays shaped like the parameters.
OPTIMIZER_STATE = frozenset(
    {"opt_state", "mu", "nu", "trace", "param_states", "exp_avg", "exp_avg_sq", "momentum_buffer"}
)


@dataclasses.dataclass(frozen=True)
class LayoutMatch:
    """A layout found among names, behind `prefix`, with `num_blocks` blocks.

    `found` and `absent` count its parameters that are and are not there; a head may be absent uncounted.
    """

    layout: Layout
    prefix: str
    num_blocks: int
    found: int
    absent: int

    @property
    def score(self) -> int:
        """Number of parameters that are there, less those that are not."""
        return self.found - self.absent

    @property
    def names(self) -> set[str]:
        """Names of all its arrays, prefix included."""
        return {self.prefix + name for name in self.layout.parameters(self.num_blocks)}

    def own_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of `shapes` that are of names behind the prefix, by the rest of the name, with stacks in their parts."""
        leaves = {name: Spec(shape, _ANY_DTYPE) for name, shape in shapes.items() if name.startswith(self.prefix)}
        parts = split_stacks(leaves, self.layout.depth_of_stack) if self.layout.stacks else leaves
        return {name.removeprefix(self.prefix): tuple(leaf.shape) for name, leaf in parts.items()}

    @property
    def is_a_set(self) -> bool:
        """Whether more than half of its parameters are there."""
        return self.found > self.absent

    def is_of_optimizer(self, told_prefix: str | None) -> bool:
        """Whether the arrays are an optimizer's moments, which have the names of the parameters.

        Keys in `told_prefix`, which the caller gave, do not count.
        """
        further = Counter(_parts(self.prefix)) - Counter(_parts(told_prefix or ""))
        return not OPTIMIZER_STATE.isdisjoint(further)


class UnknownLayoutError(LayoutError):
    """Arrays of no known layout. `nearest` has the fewest names absent, None where nothing is like any layout."""

    def __init__(self, message: str, nearest: LayoutMatch | None) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.score = -math.inf if nearest is None else nearest.score


class SeveralSetsError(LayoutError):
    """Several sets of weights."""


def detect(
    names: Collection[str], layouts: Iterable[Layout], shapes: Mapping[str, Shape], *, told_prefix: str | None = None
) -> LayoutMatch:
    """The layout and prefix that account for most of `names`.

    An optimizer's moments are never taken for weights, except under `told_prefix`, where the caller says that weights
    are; of several sets there, it is the one that has no further prefix. Raises `LayoutError` if none fits, or if
    several fit that would give different canonical arrays.
    """
    layouts = tuple(layouts)
    matches = [match for layout in layouts for match in _matches(layout, _split_names(layout, names, shapes))]
    if told_prefix is not None:
        matches = [match for match in matches if match.prefix.rstrip("./") == told_prefix.rstrip("./")] or matches
    moments = [match for match in matches if match.is_of_optimizer(told_prefix) and match.score >= 0]
    matches = [match for match in matches if not match.is_of_optimizer(told_prefix)]
    best = max((match.score for match in matches), default=-1)
    if best < 0 and moments:
        places = " and ".join(sorted({repr(match.prefix) for match in moments}))
        raise LayoutError(
            f"only an optimizer's moments are here, under {places}, and no weights; what is there is read all the same "
            f"with prefix={moments[0].prefix!r} (--prefix {moments[0].prefix})"
        )
    if best < 0:
        nearest = max(matches, key=lambda match: match.score, default=None)
        raise UnknownLayoutError(_unknown(names, layouts, nearest, shapes), nearest)
    tied = [match for match in matches if match.score == best]
    if len(tied) > 1:
        tied = [match for match in tied if _shapes_agree(match, shapes)] or tied
    first, *others = tied
    own = first.names & set(_split_names(first.layout, names, shapes))
    # A set that lacks its head, or some array, still counts as a set: choosing another one silently would be wrong.
    others += [m for m in matches if m.is_a_set and m.prefix != first.prefix and own.isdisjoint(m.names)]
    prefixes = list(dict.fromkeys([first.prefix, *(other.prefix for other in others)]))
    if len(prefixes) > 1:
        count = "two" if len(prefixes) == 2 else len(prefixes)
        *before, last = map(repr, prefixes[:MAX_LISTED])
        raise SeveralSetsError(
            f"{count} sets of Mixer weights are here, under {', '.join(before)} and {last}; "
            f"say which with prefix= (--prefix){_how_to_take_the_outer(*prefixes[:2])}"
        )
    for other in others:
        if _reading(other) != _reading(first):
            raise LayoutError(
                f"these names and shapes fit the layouts {first.layout.name} and {other.layout.name}, which read "
                "them differently; say which one it is with layout= (--from)"
            )
    return first


def _how_to_take_the_outer(*prefixes: str) -> str:
    """What to do where one prefix is within the other, for the set under the shorter one."""
    outer, inner = sorted(prefixes, key=len)
    if not inner.startswith(outer):
        return ""
    return f"; for the one under {outer!r}, leave the other out with ignore={[f'{inner}*']} (--ignore '{inner}*')"


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _split_names(layout: Layout, names: Collection[str], shapes: Mapping[str, Shape]) -> Collection[str]:
    """The names, with each stack of the layout replaced by its parts."""
    if not layout.stacks:
        return names
    return split_stacks(
        {name: Spec(shapes[name], _ANY_DTYPE) for name in names if name in shapes}, layout.depth_of_stack
    )


_ANY_DTYPE = np.dtype(np.float32)  # layouts do not depend on it


def _matches(layout: Layout, names: Collection[str]) -> list[LayoutMatch]:
    """A match of the layout behind every prefix where one of its block parameters is found."""
    blocks: dict[str, set[int]] = {}
    patterns = _patterns_by_last_part(layout.rows)
    for name in names:
        for ending, pattern, factor, offset in (*patterns.get(_last_part(name), ()), *patterns.get("", ())):
            if name.endswith(ending) and (match := pattern.fullmatch(name)):
                block, rest = divmod(int(match["index"] or 0) - offset, factor)
                if block >= 0 and not rest:
                    blocks.setdefault(match["prefix"] or "", set()).add(block)
    if layout.is_tied:
        return [_match(layout, prefix, layout.num_blocks or 1, names) for prefix in blocks]
    return [_best_depth(layout, prefix, found, names) for prefix, found in blocks.items()]


def _best_depth(layout: Layout, prefix: str, blocks: set[int], names: Collection[str]) -> LayoutMatch:
    """The match whose depth, from the highest block or from the first gap, accounts for more of the names.

    Where names outside the blocks continue their numbers ({L}), the highest number may be of no block.
    """
    gap = next(i for i in range(len(blocks) + 1) if i not in blocks)
    behind = {max(blocks)} if any(found["of"] == "L" for row in layout.rows for found in row.numbers) else set()
    candidates = []
    for depth in ({max(blocks) + 1, gap} | behind) - {0}:
        if depth > 4 * len(blocks):
            continue
        candidates.append(_match(layout, prefix, depth, names))
    return max(
        candidates,
        key=lambda match: (match.score, match.num_blocks),
        default=LayoutMatch(layout, prefix, 1, 0, len(layout.rows)),
    )


def _match(layout: Layout, prefix: str, depth: int, names: Collection[str]) -> LayoutMatch:
    parameters = layout.parameters(depth).items()
    found = sum(prefix + name in names for name, _ in parameters)
    absent = sum(prefix + name not in names and not binding.row.in_head for name, binding in parameters)
    return LayoutMatch(layout, prefix, depth, found, absent)


class _BlockPattern(NamedTuple):
    """The names of a block parameter: their ending, a pattern of them behind any prefix, and how they number blocks.

    Block i has the number `factor * i + offset`.
    """

    ending: str
    pattern: re.Pattern[str]
    factor: int
    offset: int


@cache
def _patterns_by_last_part(rows: tuple[Row, ...]) -> dict[str, list[_BlockPattern]]:
    """The block patterns by the last part of the names that they match; "" for those in whose last part a number is."""
    result: dict[str, list[_BlockPattern]] = {}
    for pattern in _block_patterns(rows):
        whole_part = _last_part(pattern.ending) != pattern.ending
        result.setdefault(_last_part(pattern.ending) if whole_part else "", []).append(pattern)
    return result


def _last_part(name: str) -> str:
    return name[max(name.rfind("/"), name.rfind(".")) + 1 :]


@cache
def _block_patterns(rows: tuple[Row, ...]) -> list[_BlockPattern]:
    patterns = []
    for row in rows:
        if "{i}" in row.general and not row.is_absent:
            regex, factor, offset, end, index = "", 1, 0, 0, "(?P<index>)"
            for found in row.numbers:
                regex += re.escape(row.foreign[end : found.start()])
                if found["of"] == "i" and index:
                    regex, index = rf"{regex}(?P<index>\d{{1,9}})", ""
                    factor, offset = int(found["factor"] or 1), int(found["offset"] or 0)
                else:
                    regex += r"\d{1,9}"
                end = found.end()
            after = row.foreign[end:]
            pattern = re.compile(rf"(?P<prefix>.*[./])?{index}{regex}{re.escape(after)}", re.DOTALL)
            patterns.append(_BlockPattern(after, pattern, factor, offset))
    return patterns


def _reading(match: LayoutMatch) -> dict[str, tuple[str, str]]:
    """The array and its axes that each parameter is read from, by canonical name."""
    bindings = match.layout.bindings(match.num_blocks).values()
    return {b.canonical: (b.foreign, f"{b.row.foreign_axes} -> {b.row.canonical_axes}") for b in bindings}


def _shapes_agree(match: LayoutMatch, shapes: Mapping[str, Shape]) -> bool:
    own = match.own_shapes(shapes)
    sizes = match.layout.axis_sizes(match.num_blocks, own)
    parameters = match.layout.parameters(match.num_blocks).items()
    return all(name not in own or binding.may_have(own[name], sizes) for name, binding in parameters)


def _unknown(
    names: Collection[str], layouts: Iterable[Layout], nearest: LayoutMatch | None, shapes: Mapping[str, Shape]
) -> str:
    shown = summarize(sorted(names)) or "no arrays"
    if names and all(not OPTIMIZER_STATE.isdisjoint(_parts(name)) for name in names):
        return f"only the state of an optimizer is here ({shown}); give the file of the model"
    known = "; ".join(f"{layout.name}: {next(iter(layout.parameters(1)))}" for layout in layouts)
    family = family_of(shapes)
    near = f" Some of these names are those of {family.words}." if family else _nearest(names, nearest)
    return (
        f"the arrays are of no known layout: found {shown}.{near} If they are of a Mixer, write a table of its names from "
        "its code, `mixer-equiv layouts FILE:Model --image 3x224x224 > ours.toml`, and read them with --layout ours.toml "
        f"(register_layout). Known layouts and a name of each: {known}"
    )


def _nearest(names: Collection[str], nearest: LayoutMatch | None) -> str:
    """Say which layout has most of the names, and where it departs."""
    if nearest is None:
        return ""
    parameters = nearest.layout.parameters(nearest.num_blocks).items()
    lacking = [nearest.prefix + name for name, binding in parameters if not binding.row.in_head]
    lacking = [name for name in lacking if name not in names]
    own = nearest.names
    further = sorted(name for name in names if name.startswith(nearest.prefix) and name not in own)
    beside = f"; not of it are {summarize(further)}" if further else ""
    return (
        f" The nearest is {nearest.layout.name}, of whose {nearest.num_blocks}-block names {nearest.found} are here and "
        f"{nearest.absent} are not, such as {summarize(lacking, 2)}{beside}."
    )
