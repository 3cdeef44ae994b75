"""A layout is a table: which parameter has which name, with its axes in which order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Literal

from mixer_equiv.errors import LayoutError

Shape = tuple[int, ...]

# In a name: {i} is the block, {L} the number of blocks, either with an offset: {i+2}.
_INDEX = re.compile(r"\{([iL])(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What code computes, or weights were trained with, where shapes cannot tell.

    `padding` is the stem's: "same" differs from "valid" only on images that the patch size does
    not divide.
    """

    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    padding: Literal["same", "valid"] = "valid"


OFFICIAL = Conventions(padding="same")


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its canonical name, its name in the layout, and the axes of both.

    `pattern` is einops': canonical axes, an arrow, the layout's axes. Without an arrow they are
    the same.
    """

    canonical: str
    foreign: str
    pattern: str

    @property
    def canonical_axes(self) -> str:
        return self.pattern.split("->")[0].strip()

    @property
    def foreign_axes(self) -> str:
        return self.pattern.split("->")[-1].strip()

    @property
    def axes(self) -> frozenset[str]:
        """Names of all axes of the parameter."""
        return frozenset(axis for group in _groups(self.foreign_axes) for axis in group)

    @property
    def in_block(self) -> bool:
        return "{i}" in self.canonical

    @property
    def in_head(self) -> bool:
        return "classes" in self.canonical_axes.split()


@dataclasses.dataclass(frozen=True)
class Binding:
    """One parameter of a model of known depth: a `Row` with its block number filled in."""

    canonical: str
    foreign: str
    row: Row

    def shape(self, axis_sizes: Mapping[str, int]) -> Shape:
        """The parameter's shape in the layout."""
        return tuple(math.prod(axis_sizes[axis] for axis in axes) for axes in _groups(self.row.foreign_axes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes of a Mixer's parameters in one implementation, and what it computes.

    `trained_with` is what weights found in this layout were trained with when no metadata says
    so; None where the layout is used for weights of several origins. `advice` says, for a
    convention, how its code is made to follow another one: a template over `activation`,
    `torch_activation`, `torch_activation_layer` and `layer_norm_eps`.
    """

    name: str
    summary: str
    framework: Literal["flax", "torch"]
    computes: Conventions
    trained_with: Conventions | None
    advice: Mapping[str, str]
    rows: tuple[Row, ...]
    aliases: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Layout {self.name}: {self.summary}>"

    def bindings(self, num_blocks: int, *, head: bool = True) -> dict[str, Binding]:
        """Every parameter of a model of `num_blocks` blocks, by canonical name, in the table's order."""
        result: dict[str, Binding] = {}
        for in_block, group in itertools.groupby(self.rows, key=lambda row: row.in_block):
            rows = [row for row in group if head or not row.in_head]
            for i in range(num_blocks if in_block else 1):
                for row in rows:
                    canonical, foreign = (_fill(name, i, num_blocks) for name in (row.canonical, row.foreign))
                    result[canonical] = Binding(canonical, foreign, row)
        return result

    def axis_sizes(self, num_blocks: int, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Sizes of the named axes, each the one that most of the arrays agree on.

        `shapes` are by the layout's names. An axis that no array shows alone is left out.
        """
        votes: dict[str, Counter[int]] = {}
        for binding in self.bindings(num_blocks).values():
            groups = _groups(binding.row.foreign_axes)
            shape = shapes.get(binding.foreign, ())
            for axes, size in zip(groups, shape, strict=False) if len(groups) == len(shape) else ():
                if len(axes) == 1:
                    votes.setdefault(axes[0], Counter())[size] += 1
        return {axis: sizes.most_common(1)[0][0] for axis, sizes in votes.items()}


def table(text: str) -> tuple[Row, ...]:
    """Rows from text: on each line a canonical name, the layout's name, and an einops pattern."""
    return tuple(Row(*line.split(maxsplit=2)) for line in text.strip().splitlines())


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
        if row.in_block and (index := _INDEX.search(row.foreign)):
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
    shown = ", ".join(sorted(names)[:4]) or "nothing"
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


def _fill(name: str, block: int, num_blocks: int) -> str:
    return _INDEX.sub(lambda m: str({"i": block, "L": num_blocks}[m[1]] + int(m[2] or 0)), name)


@cache
def _groups(axes: str) -> tuple[tuple[str, ...], ...]:
    """Axes of each dimension: "hidden (ph pw) 1" is ((hidden,), (ph, pw), ())."""
    tokens = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return tuple(
        tuple(grouped.split()) if not single else (() if single == "1" else (single,)) for grouped, single in tokens
    )
