"""Which layout some names and shapes are of, behind which prefix."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache

from mixer_equiv.errors import LayoutError
from mixer_equiv.layouts.layout import INDEX, Layout, Row, Shape


@dataclasses.dataclass(frozen=True)
class Match:
    """Where a layout was found among names: behind `prefix`, with `num_blocks` blocks."""

    layout: Layout
    prefix: str
    num_blocks: int
    found: int
    absent: int

    @property
    def score(self) -> int:
        return self.found - self.absent


def detect(names: Collection[str], layouts: Iterable[Layout], shapes: Mapping[str, Shape]) -> Match:
    """The one layout and prefix whose names are `names`, or most of them.

    Raises `LayoutError` if none fits, or if several do that give different canonical results.
    """
    layouts = tuple(layouts)
    matches = [match for layout in layouts for match in _matches(layout, names)]
    best = max((match.score for match in matches), default=-1)
    if best < 0:
        raise LayoutError(_unknown(names, layouts, matches))
    tied = [match for match in matches if match.score == best]
    if len(tied) > 1:
        tied = [match for match in tied if _shapes_agree(match, shapes)] or tied
    first, *others = tied
    for other in others:
        if other.prefix != first.prefix:
            raise LayoutError(
                f"two sets of Mixer weights are here, under {first.prefix!r} and {other.prefix!r}; "
                "convert a file or a mapping that holds one of them only"
            )
        if _reading(other) != _reading(first):
            raise LayoutError(
                f"these names and shapes fit the layouts {first.layout.name} and {other.layout.name}, which read "
                "them differently; say which one it is"
            )
    return first


def _matches(layout: Layout, names: Collection[str]) -> list[Match]:
    """The layout behind every prefix where any of its block parameters is found."""
    blocks: dict[str, set[int]] = {}
    for name in names:
        for pattern, offset in _block_patterns(layout.rows):
            if match := pattern.fullmatch(name):
                block = int(match["index"]) - offset
                if block >= 0:
                    blocks.setdefault(match["prefix"] or "", set()).add(block)
    return [_best_depth(layout, prefix, found, names) for prefix, found in blocks.items()]


def _best_depth(layout: Layout, prefix: str, blocks: set[int], names: Collection[str]) -> Match:
    """Depth by the highest block, or by the first gap, whichever explains the names better."""
    gap = next(i for i in range(len(blocks) + 1) if i not in blocks)
    candidates = []
    for depth in {max(blocks) + 1, gap} - {0}:
        if depth > 4 * len(blocks):
            continue
        bindings = layout.bindings(depth).values()
        found = sum(prefix + binding.foreign in names for binding in bindings)
        absent = sum(prefix + b.foreign not in names and not b.row.in_head for b in bindings)
        candidates.append(Match(layout, prefix, depth, found, absent))
    return max(candidates, key=lambda match: match.score, default=Match(layout, prefix, 1, 0, len(layout.rows)))


@cache
def _block_patterns(rows: tuple[Row, ...]) -> list[tuple[re.Pattern[str], int]]:
    patterns = []
    for row in rows:
        if row.in_block and (index := INDEX.search(row.foreign)):
            before, after = row.foreign[: index.start()], row.foreign[index.end() :]
            regex = rf"(?P<prefix>.*[./])?{re.escape(before)}(?P<index>\d+){re.escape(after)}"
            patterns.append((re.compile(regex), int(index[2] or 0)))
    return patterns


def _reading(match: Match) -> dict[str, tuple[str, str]]:
    """What each array becomes: the canonical name and the pattern, by the array's name."""
    bindings = match.layout.bindings(match.num_blocks).values()
    return {b.foreign: (b.canonical, f"{b.row.foreign_axes} -> {b.row.canonical_axes}") for b in bindings}


def _shapes_agree(match: Match, shapes: Mapping[str, Shape]) -> bool:
    own = {n.removeprefix(match.prefix): shape for n, shape in shapes.items() if n.startswith(match.prefix)}
    sizes = match.layout.axis_sizes(match.num_blocks, own)
    bindings = match.layout.bindings(match.num_blocks, head="classes" in sizes).values()
    return all(b.foreign not in own or b.shape(sizes) == own[b.foreign] for b in bindings)


def _unknown(names: Collection[str], layouts: Iterable[Layout], matches: list[Match]) -> str:
    shown = ", ".join(sorted(names)[:4]) or "no arrays"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    known = "; ".join(f"{layout.name}: {next(iter(layout.bindings(1).values())).foreign}" for layout in layouts)
    nearest = max(matches, key=lambda match: match.score, default=None)
    near = (
        f" The nearest is {nearest.layout.name}, of whose {nearest.num_blocks}-block names "
        f"{nearest.found} are here and {nearest.absent} are not."
        if nearest
        else ""
    )
    return f"the arrays are of no known layout: found {shown}{more}.{near} Known layouts and a name of each: {known}"
