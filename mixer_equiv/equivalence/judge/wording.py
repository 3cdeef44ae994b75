"""Deviations in words: the steps of the official model at which they are, and the places in the model's own code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mixer_equiv.equivalence.deviation import Deviation

_IN_BLOCK = re.compile(r"MixerBlock_(\d+)(?:/(.*))?")

# The most lines of code, and modules for each of them, that a report names.
_LINES_SHOWN = 3
_MODULES_SHOWN = 3


def steps_in_words(deviations: Sequence[Deviation], num_blocks: int) -> str:
    """The steps of `deviations`: the name of a single one, else such as "LayerNorm_0 in blocks 1 and 3 of 4".

    An inserted operation is before the step that consumes it, except at the head.
    """
    is_extra = deviations[0].kind == "insert" or deviations[0].expected is None
    before = "before " if is_extra and deviations[0].step != "head" else ""
    steps = list(dict.fromkeys(deviation.step for deviation in deviations))
    if len(steps) == 1:
        return before + steps[0]
    numbers: dict[str, list[int]] = {}
    others = []
    for step in steps:
        if (inside := _IN_BLOCK.fullmatch(step)) is None:
            others.append(step)
        else:
            numbers.setdefault(inside[2] or "", []).append(int(inside[1]))
    together: dict[str, list[str]] = {}
    for step, blocks in numbers.items():
        together.setdefault(blocks_in_words(blocks, num_blocks), []).append(step)
    return before + ", and ".join(
        [*(f"{_listed(inner)} in {where}".removeprefix(" in ") for where, inner in together.items()), *others]
    )


def blocks_in_words(numbers: Iterable[int], num_blocks: int) -> str:
    """Blocks by their numbers, as in the names of the stages: "blocks 0, 2 to 4 and 7 of 12"."""
    found = sorted(set(numbers))
    if len(found) == num_blocks > 1:
        return "both blocks" if num_blocks == 2 else f"all {num_blocks} blocks"
    return f"block{'s'[: len(found) > 1]} {_listed(list(_runs(found)))} of {num_blocks}"


def _runs(numbers: Sequence[int]) -> Iterable[str]:
    """Increasing numbers, three or more in a row as one text."""
    start = 0
    while start < len(numbers):
        end = start
        while end + 1 < len(numbers) and numbers[end + 1] == numbers[end] + 1:
            end += 1
        if end - start >= 2:
            yield f"{numbers[start]} to {numbers[end]}"
        else:
            yield from map(str, numbers[start : end + 1])
        start = end + 1


def places_in_words(deviations: Iterable[Deviation]) -> tuple[str, ...]:
    """The lines of the model's code, each with its modules: "in blocks.1 and blocks.3 (mymixer.py:41)"."""
    modules: dict[str, dict[str, None]] = {}
    for place in (deviation.place for deviation in deviations):
        if place is not None:
            modules.setdefault(place.where, {})[place.module] = None
    said = [_line_in_words(where, [name for name in names if name]) for where, names in modules.items()]
    hidden = len(said) - _LINES_SHOWN
    return (*said[:_LINES_SHOWN], *([f"and {hidden} more lines"] if hidden > 0 else []))


def _line_in_words(where: str, modules: Sequence[str]) -> str:
    if not modules:
        return f"at {where}"
    hidden = len(modules) - _MODULES_SHOWN
    named = _listed([*modules[: _MODULES_SHOWN - 1], f"{hidden + 1} more"] if hidden > 0 else modules)
    return f"in {named} ({where})" if where else f"in {named}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
