"""Leading axes of arrays that count blocks, as `nn.scan` makes them, or copies of one array, as `pmap` keeps them.

Found by names and ranks; reads no array. Start at `stacked_blocks` and `without_copies`. Names have "/" for every
separator here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import is_array
from mixer_equiv.arrays.stacking import first_copy, split_stacks
from mixer_equiv.checkpoints.names import NESTING
from mixer_equiv.errors import LayoutError
from mixer_equiv.layouts import Layout
from mixer_equiv.layouts.base import Shape, axis_groups, fill

# No Mixer has more blocks, and no number in a file makes more parts of an array.
MAX_STACKED = 4096


class Copies(NamedTuple):
    """Leaves with the first of its copies in place of each array that has `number` of them."""

    leaves: dict[str, Any]
    number: int


def without_copies(leaves: Mapping[str, Any], given: Mapping[str, str]) -> Copies | None:
    """Take the first axis of arrays for equal copies, if it has one size in all that have axes; None if it has not.

    Errors call an array by its name in the file, which `given` has.
    """
    arrays = {name: leaf for name, leaf in leaves.items() if is_array(leaf) and len(leaf.shape)}
    numbers = {leaf.shape[0] for leaf in arrays.values()}
    if len(numbers) != 1 or 0 in numbers:
        return None
    copies = {name: first_copy(given[name], leaf) for name, leaf in arrays.items()}
    return Copies({**leaves, **copies}, *numbers)


class Stacked(NamedTuple):
    """Leaves with the parameters of each block in place of arrays that have those of all blocks.

    `sources` has the name of the array that a parameter is a part of, and `places` its place in it, as "[3]"; "" where
    it is all of it.
    """

    leaves: dict[str, Any]
    sources: dict[str, str]
    places: dict[str, str]
    notes: list[str]


class _BlockNames(NamedTuple):
    """How a layout names the parameters of block {i}: `start` and `rest`, with the rank of each `rest`."""

    start: str
    ranks: dict[str, int]


class _Stack(NamedTuple):
    """Arrays whose names end alike, by the `rest` of their names behind `place`; their first axes count blocks."""

    place: str
    arrays: dict[str, str]
    counts: Shape


def stacked_blocks(leaves: Mapping[str, Any], layout: Layout) -> Stacked | None:
    """Take the first axes of arrays for blocks of `layout`, where the arrays are named as one block's parameters are.

    The blocks may stand under any name, such as "ScanMixerBlock_0" or "blocks"; stacks whose names differ in their
    last number follow one another, without a gap. None if there are none, or nothing of the layout is outside of them.
    Raises `LayoutError` if other arrays have the blocks' names too.
    """
    names = _block_names(layout)
    stacks = _find_stacks(leaves, names) if names else []
    if not names or not stacks:
        return None
    outside = {row.foreign for row in layout.rows if not row.in_block and not row.is_absent and "{" not in row.foreign}
    prefixes = _prefixes(leaves, outside)
    if not prefixes:
        return None
    own = {name for stack in stacks for name in stack.arrays.values()}
    result = Stacked({name: leaf for name, leaf in leaves.items() if name not in own}, {}, {}, [])
    for prefix, group in _by_prefix(stacks, prefixes).items():
        if not _follow_one_another(group):
            return None
        block = 0
        for stack in group:
            block = _put_blocks(result, leaves, stack, prefix, names, block)
        places = ", ".join(stack.place for stack in group)
        result.notes.append(f"{places} was taken for a stack of {block} blocks, by the first axes of its arrays")
    for new, source in result.sources.items():
        if new in leaves and new not in own:
            raise LayoutError(
                f"a part of the stack {source} would be {new}, which is another array here; leave one of them out with "
                "ignore= (--ignore GLOB)"
            )
    return result


def _follow_one_another(group: list[_Stack]) -> bool:
    """Whether the names of stacks differ in their last numbers alone, and these have no gap."""
    if len(group) == 1:
        return True
    kinds = {re.sub(r"\d+(?=\D*$)", "", stack.place) for stack in group}
    numbers = [int(number) for stack in group for number in re.findall(r"\d{1,9}", stack.place)[-1:]]
    return len(kinds) == 1 and numbers == list(range(numbers[0], numbers[0] + len(group))) and numbers[0] in (0, 1)


def _put_blocks(
    result: Stacked, leaves: Mapping[str, Any], stack: _Stack, prefix: str, names: _BlockNames, block: int
) -> int:
    """Put the parameters of a stack's blocks into `result`, from number `block` on; the number after the last one."""
    following = block
    for rest, name in stack.arrays.items():
        following = block
        for part, leaf in split_stacks({name: leaves[name]}, lambda _: len(stack.counts)).items():
            new = f"{prefix}{fill(names.start, following, 0)}/{rest}"
            result.leaves[new], result.sources[new] = leaf, name
            result.places[new] = part.removeprefix(name) if math.prod(stack.counts) > 1 else ""
            following += 1
    return following


def _block_names(layout: Layout) -> _BlockNames | None:
    """How a layout names a block's parameters; None if they have not one part of their names in common."""
    starts: set[str] = set()
    ranks: dict[str, int] = {}
    for row in layout.rows:
        if row.in_block and not row.is_absent and not row.is_tied:
            match = re.fullmatch(r"([^{]*\{\d*i(?:\+\d+)?\}[^/{]*)/([^{]*)", row.foreign)
            if match is None:
                return None
            starts.add(match[1])
            ranks[match[2]] = len(axis_groups(row.foreign_axes))
    return _BlockNames(starts.pop(), ranks) if len(starts) == 1 else None


def _find_stacks(leaves: Mapping[str, Any], names: _BlockNames) -> list[_Stack]:
    """Find arrays that are named as the parameters of one block are, and have as many first axes more, of one size."""
    lengths = sorted({rest.count(NESTING) + 1 for rest in names.ranks})
    last_parts = {rest.rpartition(NESTING)[2] for rest in names.ranks}
    found: dict[str, dict[str, str]] = {}
    for name, leaf in leaves.items():
        if name[name.rfind(NESTING) + 1 :] not in last_parts or not is_array(leaf):
            continue
        parts = name.split(NESTING)
        for length in lengths:
            rest = NESTING.join(parts[-length:])
            if rest in names.ranks and length < len(parts):
                found.setdefault(NESTING.join(parts[:-length]), {})[rest] = name
    stacks = []
    for place, arrays in found.items():
        counts = {rest: _first_axes(leaves[name].shape, names.ranks[rest]) for rest, name in arrays.items()}
        common, frequency = Counter(counts.values()).most_common(1)[0]
        if common and 0 < math.prod(common) <= MAX_STACKED and 2 * frequency > len(names.ranks):
            own = {rest: name for rest, name in arrays.items() if counts[rest] == common}
            stacks.append(_Stack(place, own, common))
    return stacks


def _first_axes(shape: Shape, rank: int) -> Shape:
    return tuple(shape[: max(len(shape) - rank, 0)])


def _prefixes(leaves: Mapping[str, Any], outside: set[str]) -> set[str]:
    """Prefixes behind which parameters that are of no block stand."""
    return {
        name.removesuffix(own) for name in leaves for own in outside if name == own or name.endswith(f"{NESTING}{own}")
    }


def _by_prefix(stacks: list[_Stack], prefixes: set[str]) -> dict[str, list[_Stack]]:
    """Stacks by the longest prefix that they stand behind, in the order of the last numbers in their names."""
    result: dict[str, list[_Stack]] = {}
    for stack in stacks:
        behind = [prefix for prefix in prefixes if f"{stack.place}/".startswith(prefix)]
        parent = stack.place[: stack.place.rfind(NESTING) + 1]
        result.setdefault(max(behind, key=len, default=parent), []).append(stack)
    for group in result.values():
        group.sort(key=lambda stack: [int(number) for number in re.findall(r"\d+", stack.place)][-1:])
    return result
