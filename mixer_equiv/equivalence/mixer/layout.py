"""`layout_found`: make a layout of the names that a model has for the official parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.match.parameter_search import AbsentParameter, AssignedOperand
from mixer_equiv.equivalence.match.program_search import ProgramMatch
from mixer_equiv.equivalence.mixer.result import Unnamed
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.errors import summarize
from mixer_equiv.layouts import ABSENT, LINEN, Constraint, Conventions, Layout, Row
from mixer_equiv.layouts.custom import sharing_problems


class Naming(NamedTuple):
    """The layout of a model, or why it has none; its constraints; and notices of how it holds its parameters."""

    layout: Layout | Unnamed
    constraints: tuple[Constraint, ...]
    notices: tuple[Notice, ...]


def layout_found(found: ProgramMatch, trace: Trace, config: MixerConfig, name: str, framework: str) -> Naming:
    """Make the layout of a model called `name`, in which every official parameter is one of its own."""
    names: dict[str, tuple[str, str]] = {}
    computed = []
    for canonical, binding in LINEN.bindings(config.num_blocks, head=config.num_classes > 0).items():
        assigned, axes = found.assignments[canonical], binding.row.canonical_axes
        if isinstance(assigned, AbsentParameter):
            names[canonical] = ABSENT, axes
        if not isinstance(assigned, AssignedOperand):
            continue
        own = None if assigned.second_layer is not None else _name_of(assigned.operand, trace)
        if own is not None:
            names[canonical] = own, _pattern(axes, assigned, own, trace)
        else:
            computed.append(f"{canonical} is computed from {', '.join(sorted(assigned.operand.leaves))}")
    used = {foreign.partition("[")[0] for foreign, _ in names.values()}
    hidden = [own for own in trace.hidden if own in used]
    untold = f"not in the state_dict, so that loading leaves them as they are: {summarize(hidden, 2, '; ')}"
    rows = tuple(_rows(names, config.num_blocks))
    computes = Conventions(config.activation, config.layer_norm_eps)
    layout = Layout(
        name=re.sub(r"[^\w.-]+", "-", name).strip("-") or "found",
        summary=f"as found in {name}",
        framework="flax" if framework == "flax" else "torch",
        computes=computes,
        trained_with=None,
        advice={},
        rows=rows,
    )
    if layout.is_tied:
        layout = dataclasses.replace(layout, num_blocks=config.num_blocks)
    reason = f"parameters are not its own, so that no layout has them: {summarize(computed, 2, '; ')}"
    return Naming(
        Unnamed(reason) if computed else layout,
        layout.constraints,
        (Notice(untold, "not_in_state_dict"),) if hidden else (),
    )


def _name_of(operand: Value, trace: Trace) -> str | None:
    """The parameter that an operand is, or the part of one, such as "kernels[3]"."""
    if operand.name is not None:
        return operand.name
    for leaf in trace.values:
        if leaf.name in operand.leaves and leaf.size > operand.size:
            place = _place_in(leaf.array, operand.array.reshape(-1))
            if place is not None:
                return f"{leaf.name}{place}"
    return None


def _place_in(whole: np.ndarray, part: np.ndarray) -> str | None:
    """The indices at which `part` lies in an array, such as "[3][0]"; None if it does not."""
    if whole.size == part.size:
        return "" if np.array_equal(whole.reshape(-1), part) else None
    if whole.size % part.size or whole.size // len(whole) < part.size:
        return None
    places = ((i, _place_in(inner, part)) for i, inner in enumerate(whole))
    return next((f"[{i}]{place}" for i, place in places if place is not None), None)


def _pattern(canonical_axes: str, assigned: AssignedOperand, own: str, trace: Trace) -> str:
    """The einops pattern from the canonical axes to those of the parameter in its own shape."""
    axes = canonical_axes.split()
    whole, *indices = own.split("[")
    shape = list(trace.parameters.get(whole, assigned.operand.array.shape)[len(indices) :])
    ordered = (
        [(axes[i], assigned.sizes[i]) for i in assigned.order]
        if len(assigned.sizes) == len(axes)
        else [(axes[0], assigned.operand.size)]
    )
    groups = []
    for size in shape:
        group: list[str] = []
        held = 1
        while ordered and held < size:
            axis, length = ordered.pop(0)
            group.append(axis)
            held *= length
        groups.append("1" if not group else group[0] if len(group) == 1 else f"({' '.join(group)})")
    if ordered:  # axes of size 1, whose place does not matter
        places = [i for i, group in enumerate(groups) if group == "1"]
        for (axis, _), place in zip(ordered, places, strict=False):
            groups[place] = axis
    foreign = " ".join(groups)
    return canonical_axes if foreign == canonical_axes else f"{canonical_axes} -> {foreign}"


def _rows(names: Mapping[str, tuple[str, str]], depth: int) -> list[Row]:
    """Rows with {i} for the block if the names of all blocks follow a rule, else a row for every name."""
    rows, done = [], set()
    for canonical, (foreign, pattern) in names.items():
        block = re.match(r"MixerBlock_(\d+)/(.*)", canonical)
        if block is None:
            rows.append(Row(canonical, foreign, pattern))
        elif block[2] not in done:
            done.add(block[2])
            every = {i: names[n] for i in range(depth) if (n := f"MixerBlock_{i}/{block[2]}") in names}
            if len(every) == 1:  # one block alone shows no rule
                rows.append(Row(canonical, foreign, pattern))
                continue
            rule = _rule({i: name for i, (name, _) in every.items()})
            if rule is None or len({own for _, own in every.values()}) > 1:
                return [Row(name, *own) for name, own in names.items()]
            rows.append(Row(f"MixerBlock_{{i}}/{block[2]}", rule, pattern))
    rules = {row.foreign for row in rows if row.in_block}
    ruled = [
        row if row.in_block else dataclasses.replace(row, foreign=_after(row.foreign, rules, depth)) for row in rows
    ]
    # Rules from few blocks can claim too much, such as a norm that one block shares with another.
    return [Row(name, *own) for name, own in names.items()] if any(sharing_problems(ruled)) else ruled


def _after(name: str, rules: Iterable[str], depth: int) -> str:
    """A name outside the blocks, counted from the last block where the rule of the blocks would give it too."""
    for rule in rules:
        before, _, rest = rule.partition("{")
        index, _, after = rest.partition("}")
        number = name.removeprefix(before).removesuffix(after)
        if rest and name == f"{before}{number}{after}" and number.isdigit():
            factor = int(index.partition("i")[0] or 1)
            further = int(number) - factor * depth
            if further >= 0:
                return f"{before}{{{factor if factor > 1 else ''}L{f'+{further}' if further else ''}}}{after}"
    return name


def _rule(names: Mapping[int, str]) -> str | None:
    """The rule, with {i} or {2i+1}, for the names of all blocks; the name itself if all have the same; None if none."""
    split = [re.split(r"(\d+)", name) for name in names.values()]
    if len({len(parts) for parts in split}) > 1:
        return None
    columns = [_common(list(names), place) for place in zip(*split, strict=True)]
    return None if None in columns else "".join(filter(None, columns))


def _common(blocks: list[int], parts: tuple[str, ...]) -> str | None:
    """The rule for one part of the blocks' names: a common text, or a number counted by block; None if neither."""
    if len(set(parts)) == 1:
        return parts[0]
    if not all(part.isdigit() and str(int(part)) == part for part in parts):
        return None
    numbers = [int(part) for part in parts]
    factor, rest = divmod(numbers[-1] - numbers[0], blocks[-1] - blocks[0])
    offset = numbers[0] - factor * blocks[0]
    if rest or factor < 1 or offset < 0 or numbers != [factor * block + offset for block in blocks]:
        return None
    return f"{{{factor if factor > 1 else ''}i{f'+{offset}' if offset else ''}}}"
