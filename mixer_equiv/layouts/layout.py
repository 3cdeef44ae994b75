"""A layout is a table: which parameter has which name, with its axes in which order."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Literal

from mixer_equiv.config import check_conventions
from mixer_equiv.errors import ConfigError

Shape = tuple[int, ...]

# In a name: {i} is the block, {L} the number of blocks, either with an offset: {i+2}.
INDEX = re.compile(r"\{([iL])(?:\+(\d+))?\}")


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What code computes, or weights were trained with, where shapes cannot tell.

    `padding` is the stem's: "same" differs from "valid" only on images that the patch size does
    not divide.
    """

    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    padding: Literal["same", "valid"] = "valid"

    def __post_init__(self) -> None:
        check_conventions(self.activation, self.layer_norm_eps)
        if self.padding not in ("same", "valid"):
            raise ConfigError(f"padding is {self.padding!r}; it must be 'same' or 'valid'")


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

    def symbolic_shape(self, axis_sizes: Mapping[str, int]) -> tuple[int | str, ...]:
        """The shape with the names of axes where their size is not known."""
        return tuple(
            math.prod(axis_sizes[axis] for axis in axes) if axis_sizes.keys() >= set(axes) else " ".join(axes)
            for axes in _groups(self.row.foreign_axes)
        )


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


def _fill(name: str, block: int, num_blocks: int) -> str:
    return INDEX.sub(lambda m: str({"i": block, "L": num_blocks}[m[1]] + int(m[2] or 0)), name)


@cache
def _groups(axes: str) -> tuple[tuple[str, ...], ...]:
    """Axes of each dimension: "hidden (ph pw) 1" is ((hidden,), (ph, pw), ())."""
    tokens = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return tuple(
        tuple(grouped.split()) if not single else (() if single == "1" else (single,)) for grouped, single in tokens
    )
