"""`Layout`: a table of the names and axis orders that an implementation gives the parameters of a Mixer.

Two canonical parameters may share a name (a LayerNorm used twice), a name may lack the block number (blocks
tied across depth), and a parameter that the code does not have is called "-". The canonical form then repeats
values, or has the zeros and ones that change nothing, and only weights that meet these `constraints` can be
converted back. Tables know nothing of files, and of no array beyond its name and shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from typing import Literal, get_args

from mixer_equiv.config import check_conventions, joint_axis
from mixer_equiv.errors import ConfigError, LayoutError

Shape = tuple[int, ...]

# A placeholder in a name: {i} is the block, {L} the number of blocks, each with a factor and an offset: {2i+1}.
INDEX = re.compile(r"\{(?P<factor>\d*)(?P<of>[iL])(?:\+(?P<offset>\d+))?\}")

# The end of a name that is a place in a stack of arrays, as in kernels[{i}] or affine[0][1].
PLACES = re.compile(r"(?:\[[^\[\]]+\])+$")

ABSENT = "-"  # the name of a parameter that the code does not have

# Values that change nothing, by the last part of a canonical name: those of a parameter that the code does not have.
NEUTRAL = {"bias": 0, "scale": 1}


# What a layout may demand of official weights; `Constraint` says what each means.
ConstraintKind = Literal["shared_parameters", "tied_blocks", "absent_parameters"]
# Every `ConstraintKind`.
CONSTRAINTS: tuple[ConstraintKind, ...] = get_args(ConstraintKind)


@dataclasses.dataclass(frozen=True)
class Conventions:
    """Settings that shapes do not show: those that code computes, or that weights were trained with.

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


# The conventions of the official model, with which the published weights were trained.
OFFICIAL_CONVENTIONS = Conventions(padding="same")

# How code is made to follow a convention, where its layout does not say it.
ADVICE = {
    "activation": "make it compute {torch_activation}",
    "layer_norm_eps": "give its LayerNorms eps {layer_norm_eps:g}",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its canonical name, its name in the layout, and the axes of both.

    `pattern` is an einops pattern: canonical axes, an arrow, the layout's axes, where parentheses join axes in one
    dimension and 1 is a dimension of that size. Without an arrow the axes are the same. The `foreign` name may hold
    the number of the block and that of blocks, {i} and {L}, as in {i+2} or {2i+1}.
    """

    canonical: str
    foreign: str
    pattern: str

    @property
    def canonical_axes(self) -> str:
        """The axes before the arrow, in canonical order."""
        return self.pattern.split("->")[0].strip()

    @property
    def foreign_axes(self) -> str:
        """The axes behind the arrow, in the layout's order."""
        return self.pattern.split("->")[-1].strip()

    @property
    def axes(self) -> frozenset[str]:
        """Names of all axes of the parameter."""
        return frozenset(axis for group in axis_groups(self.foreign_axes) for axis in group)

    @property
    def in_block(self) -> bool:
        """Whether every block has this parameter."""
        return "{i}" in self.canonical

    @property
    def general(self) -> str:
        """The canonical name with {i}, also of a row for a single block such as MixerBlock_3."""
        return re.sub(r"^MixerBlock_\d+/", "MixerBlock_{i}/", self.canonical)

    @property
    def is_absent(self) -> bool:
        """Whether the layout's code does not have this parameter."""
        return self.foreign == ABSENT

    @property
    def is_tied(self) -> bool:
        """Whether all blocks share this parameter."""
        return self.in_block and not self.is_absent and not any(number["of"] == "i" for number in self.numbers)

    @property
    def numbers(self) -> list[re.Match[str]]:
        """The placeholders in its name."""
        return list(INDEX.finditer(self.foreign))

    @property
    def in_head(self) -> bool:
        """Whether this is a parameter of the head."""
        return "classes" in self.canonical_axes.split()


@dataclasses.dataclass(frozen=True)
class Binding:
    """One parameter of a model of known depth: a `Row` with its block number filled in."""

    canonical: str
    foreign: str
    row: Row

    @property
    def is_absent(self) -> bool:
        """Whether the layout's code does not have this parameter."""
        return self.row.is_absent

    def shape(self, axis_sizes: Mapping[str, int]) -> Shape:
        """The parameter's shape in the layout."""
        return tuple(math.prod(axis_sizes[axis] for axis in axes) for axes in axis_groups(self.row.foreign_axes))

    def symbolic_shape(self, axis_sizes: Mapping[str, int]) -> tuple[int | str, ...]:
        """The shape, with names of axes in place of unknown sizes."""
        return tuple(_size(axes, axis_sizes) for axes in axis_groups(self.row.foreign_axes))

    def may_have(self, shape: Shape, axis_sizes: Mapping[str, int]) -> bool:
        """Whether this shape agrees with the sizes that are known."""
        wanted = self.symbolic_shape(axis_sizes)
        return len(shape) == len(wanted) and all(
            isinstance(want, str) or size == want for size, want in zip(shape, wanted, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Constraint:
    """A condition that official weights must meet for a layout to hold them.

    `parameters` are canonical names. "shared_parameters" are all equal, "absent_parameters" have the values that
    change nothing, zeros or ones, and those of "tied_blocks" are equal in all blocks.
    """

    kind: ConstraintKind
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        first, *others = self.parameters
        match self.kind:
            case "shared_parameters":
                return f"{', '.join(others)} equal to {first}"
            case "absent_parameters":
                return f"{first} all {('zeros', 'ones')[NEUTRAL[first.rpartition('/')[2]]]}"
            case "tied_blocks":
                return f"{first} the same in all blocks"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names and shapes of a Mixer's parameters in one implementation, and the conventions that it computes.

    `trained_with` are the conventions of weights in this layout whose metadata has none; None where the layout
    is used for weights of several origins. `provenance` tells these apart, by globs over the names of files,
    folders and releases. `advice` says how its code is made to follow another convention: templates over
    `activation`, `torch_activation`, `torch_activation_layer` and `layer_norm_eps`, with `ADVICE` as the default.

    `num_blocks` is the depth where all blocks are tied, so that no name shows it. `read_only` is
    the reason why nothing is written in this layout. `tidy` maps the names and shapes of old files to those of the
    table: from shapes by name to a new name and shape for each.
    """

    name: str
    summary: str
    framework: Literal["flax", "torch"]
    computes: Conventions
    trained_with: Conventions | None
    advice: Mapping[str, str]
    rows: tuple[Row, ...]
    aliases: tuple[str, ...] = ()
    provenance: Mapping[str, Conventions] = dataclasses.field(default_factory=dict)
    num_blocks: int | None = None
    read_only: str = ""
    tidy: Callable[[Layout, int, Mapping[str, Shape]], dict[str, tuple[str, Shape]]] | None = None

    def __repr__(self) -> str:
        return f"<Layout {self.name}: {self.summary}>"

    def to_toml(self) -> str:
        """The table as text, as `register_layout` and `--layout` read it from a .toml file.

        Raises `LayoutError` for text that no such file can hold: half of a surrogate pair, or braces in a
        name that enclose no number of a block.
        """
        import tomli_w

        for row in self.rows:
            if re.search(r"[{}]", INDEX.sub("", row.foreign)):
                raise LayoutError(
                    f"row {row.canonical}: {row.foreign!r} cannot be written, since a layout's names have braces "
                    "only around block numbers, such as {i} or {2i+1}"
                )
        optional = {
            "aliases": list(self.aliases),
            "num_blocks": self.num_blocks,
            "trained_with": self.trained_with and dataclasses.asdict(self.trained_with),
            "advice": dict(self.advice),
        }
        fields = {
            "name": self.name,
            "summary": self.summary,
            "framework": self.framework,
            "rows": self._row_texts(),
            "computes": dataclasses.asdict(self.computes),
            **{key: value for key, value in optional.items() if value},
        }
        text = tomli_w.dumps(fields)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = error.object[error.start]
            raise LayoutError(
                f"the layout {self.name!r} cannot be written: it has {found!r}, half of a surrogate pair, which is no "
                "character that a text file can hold"
            ) from None
        return text

    def _row_texts(self) -> list[str | list[str]]:
        """Rows as lines with their columns below each other; as lists of three texts where names have white space."""
        widths = [max(len(getattr(row, column)) for row in self.rows) for column in ("canonical", "foreign")]
        texts: list[str | list[str]] = []
        for row in self.rows:
            line = f"{row.canonical:{widths[0]}}  {row.foreign:{widths[1]}}  {row.pattern}"
            columns = [row.canonical, row.foreign, row.pattern]
            texts.append(line if line.split(maxsplit=2) == columns else columns)
        return texts

    def bindings(self, num_blocks: int, *, head: bool = True) -> dict[str, Binding]:
        """Every parameter of a model of `num_blocks` blocks, by canonical name, in the table's order."""
        result: dict[str, Binding] = {}
        for in_block, group in itertools.groupby(self.rows, key=lambda row: row.in_block):
            rows = [row for row in group if head or not row.in_head]
            for i in range(num_blocks if in_block else 1):
                for row in rows:
                    canonical, foreign = (fill(name, i, num_blocks) for name in (row.canonical, row.foreign))
                    result[canonical] = Binding(canonical, foreign, row)
        return result

    def parameters(self, num_blocks: int) -> dict[str, Binding]:
        """The parameters that the layout's code has, by its own names; of shared ones the first."""
        result: dict[str, Binding] = {}
        for binding in self.bindings(num_blocks).values():
            if not binding.is_absent:
                result.setdefault(binding.foreign, binding)
        return result

    def axis_sizes(self, num_blocks: int, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """Size of each named axis, the one on which most of the arrays agree.

        `shapes` are by the layout's names. Axes that are seen in no array are left out; axes that are only seen
        joined, as in a stem of (ph pw channels) columns, have one size together, under their `joint_axis`.
        """
        votes: dict[str, Counter[int]] = {}
        for name, binding in self.parameters(num_blocks).items():
            groups = axis_groups(binding.row.foreign_axes)
            shape = shapes.get(name, ())
            for axes, size in zip(groups, shape, strict=False) if len(groups) == len(shape) else ():
                if axes:
                    votes.setdefault(joint_axis(axes), Counter())[size] += 1
        return _with_factors({axis: sizes.most_common(1)[0][0] for axis, sizes in votes.items()})

    def depth_of_stack(self, name: str) -> int:
        """Number of axes of the array `name`, with or without a prefix, that count parameters stacked in it."""
        return next((depth for pattern, depth in self.stacks.items() if re.fullmatch(pattern, name)), 0)

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Patterns of the names of stacked arrays, and the number of their axes that count parameters."""
        stacks = {}
        for row in self.rows:
            places = PLACES.search(row.foreign)
            if places is not None:
                parts = INDEX.split(row.foreign[: places.start()])[::4]
                stacks[rf"(?:.*[./])?{r'[0-9]+'.join(map(re.escape, parts))}"] = places[0].count("[")
        return stacks

    @cached_property
    def is_tied(self) -> bool:
        """Whether no name shows a block number, so that names cannot tell the depth."""
        return not any(row.in_block and not row.is_tied and not row.is_absent for row in self.rows)

    @cached_property
    def constraints(self) -> tuple[Constraint, ...]:
        """The constraints that official weights must meet; none where the layout holds any weights."""
        return tuple(_constraints(self.rows))


def _constraints(rows: tuple[Row, ...]) -> Iterator[Constraint]:
    by_name: dict[str, list[str]] = {}
    for row in rows:
        by_name.setdefault(row.foreign, []).append(row.canonical)
    for row in rows:
        first, *others = by_name[row.foreign]
        if row.is_absent:
            yield Constraint("absent_parameters", (row.canonical,))
        elif row.canonical == first and others:
            yield Constraint("shared_parameters", (first, *others))
    for row in rows:
        if row.is_tied and by_name[row.foreign][0] == row.canonical:
            yield Constraint("tied_blocks", (row.canonical,))


def table(text: str) -> tuple[Row, ...]:
    """Rows from lines of text: a canonical name, the layout's name, and an einops pattern."""
    return tuple(Row(*line.split(maxsplit=2)) for line in text.strip().splitlines())


def _size(axes: tuple[str, ...], axis_sizes: Mapping[str, int]) -> int | str:
    if axis_sizes.keys() >= set(axes):
        return math.prod(axis_sizes[axis] for axis in axes)
    return axis_sizes.get(joint_axis(axes), " ".join(axes))


def _with_factors(sizes: dict[str, int]) -> dict[str, int]:
    """`sizes`, with those of axes added that are only seen joined with others of known sizes."""
    result = dict(sizes)
    for joint, size in sizes.items():
        unknown = [axis for axis in joint.split() if axis not in sizes]
        known = math.prod(sizes.get(axis, 1) for axis in joint.split())
        if len(unknown) == 1 and known and size % known == 0:
            result[unknown[0]] = size // known
    return result


def fill(name: str, block: int, num_blocks: int) -> str:
    """The name with its placeholders filled in."""
    numbers = {"i": block, "L": num_blocks}
    return INDEX.sub(lambda m: str(int(m["factor"] or 1) * numbers[m["of"]] + int(m["offset"] or 0)), name)


@cache
def axis_groups(axes: str) -> tuple[tuple[str, ...], ...]:
    """The axes in each dimension: "hidden (ph pw) 1" is ((hidden,), (ph, pw), ())."""
    tokens = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return tuple(
        tuple(grouped.split()) if not single else (() if single == "1" else (single,)) for grouped, single in tokens
    )
