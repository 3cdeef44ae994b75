"""`Correspondence`: which numbers of A's parameters are which of B's, to be read and to port weights by.

Nothing here searches. Start at `Correspondence`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.forward import Forward
from mixer_equiv.equivalence.correspondence.pieces import Candidate, Piece, Shape, aligned, is_in_order
from mixer_equiv.equivalence.match.axes import reorder_axes
from mixer_equiv.equivalence.record.graph import Graph, Ref
from mixer_equiv.errors import ConversionError, summarize

# The source of a number that is a constant.
_CONSTANT = -1

# Ranges of indices that are listed.
_MOST_RANGES = 4


@dataclasses.dataclass(frozen=True, order=True)
class Row:
    """One piece of a parameter of A, and what it is of B.

    Attributes:
        a: The name in A, with the part in brackets.
        b: The names in B, with the part in brackets; "0" or "1" if B has none.
        axes: A pattern in einops' terms from A's axes to B's; empty if they are the same.
    """

    a: str
    b: str
    axes: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Correspondence:
    """A's parameters in terms of B's.

    Attributes:
        rows: What is which, for people.
        a_shapes: The shapes of A's parameters by name.
        b_shapes: The shapes of B's parameters by name.
        sources: For each parameter of A, by name, the place of each of its numbers among those of all B's parameters in
            the order of `b_shapes`; -1 where B has none.
        constants: What A's numbers are where B has none, by name.
        computed: By the names of A's parameters that B computes, how: from B's parameters in float64.
    """

    rows: tuple[Row, ...]
    a_shapes: Mapping[str, tuple[int, ...]]
    b_shapes: Mapping[str, tuple[int, ...]]
    sources: Mapping[str, np.ndarray]
    constants: Mapping[str, np.ndarray]
    computed: Mapping[str, Callable[[Mapping[str, Tensor]], np.ndarray]]

    def to_a(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A's parameters of B's weights, in their dtype. Raises `ConversionError` for weights that are not B's."""
        _check(weights, self.b_shapes)
        flat = _joined(weights, self.b_shapes)
        tensors = {name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in weights.items()}
        made = {}
        for name, sources in self.sources.items():
            constant = self.constants[name].astype(flat.dtype)
            made[name] = np.where(sources == _CONSTANT, constant, flat[sources])
        for name, compute in self.computed.items():
            made[name] = compute(tensors).astype(flat.dtype)
        return made

    def to_b(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """B's parameters of A's weights, in their dtype.

        Raises `ConversionError` for weights that are not A's, for parameters of B that nothing of A gives, and for
        weights that B cannot hold: two that differ where it has one, or one that is not the constant that it has.
        """
        _check(weights, self.a_shapes)
        if self.computed:
            raise ConversionError(
                f"B computes {summarize(self.computed, 3)} from its parameters, so that weights cannot be ported to it"
                "; port them in the other direction"
            )
        size = sum(map(int, map(np.prod, self.b_shapes.values())))
        dtype = np.result_type(*weights.values())
        flat, is_set = np.zeros(size, dtype), np.zeros(size, bool)
        for name, sources in self.sources.items():
            array, held = np.asarray(weights[name]), sources != _CONSTANT
            if not np.array_equal(array[~held], self.constants[name][~held].astype(array.dtype)):
                raise ConversionError(
                    f"B has nothing for {name}, which is not {self.constants[name].flat[0]:g} throughout"
                )
            places, numbers = sources[held], array[held]
            again = is_set[places]
            if not np.array_equal(flat[places][again], numbers[again]):
                raise ConversionError(f"B has one parameter for {name} and another one of A, which differ")
            flat[places], is_set[places] = numbers, True
        parts = dict(zip(self.b_shapes, np.split(is_set, np.cumsum(self._sizes)[:-1]), strict=True))
        lacking = [name for name, part in parts.items() if not part.all()]
        if lacking:
            raise ConversionError(f"nothing of A gives {summarize(lacking, 3)} of B")
        arrays = np.split(flat, np.cumsum(self._sizes)[:-1])
        return {name: array.reshape(shape) for array, (name, shape) in zip(arrays, self.b_shapes.items(), strict=True)}

    @property
    def _sizes(self) -> list[int]:
        return [int(np.prod(shape)) for shape in self.b_shapes.values()]

    def __str__(self) -> str:
        rows = list(_generalised(self.rows))
        widths = [max(len(getattr(row, column)) for row in rows) for column in ("a", "b")]
        return "\n".join(f"{row.a:<{widths[0]}}  {row.b:<{widths[1]}}  {row.axes}".rstrip() for row in rows)


def correspondence_of(bindings: Mapping[str, Sequence[tuple[Piece, Candidate]]], a: Graph, b: Graph) -> Correspondence:
    """The correspondence that a search found, by A's names."""
    b_shapes = {name: b.nodes[number].shapes[0] for name, number in sorted(b.parameters.items())}
    numbers = _numbered(b_shapes)
    rows: list[Row] = []
    sources: dict[str, np.ndarray] = {}
    constants: dict[str, np.ndarray] = {}
    computed: dict[str, Callable[[Mapping[str, Tensor]], np.ndarray]] = {}
    for name, parts in bindings.items():
        rows += [_row(piece, candidate, numbers, b) for piece, candidate in parts]
        places, constant = np.full(parts[0][0].whole, _CONSTANT), np.zeros(parts[0][0].whole)
        for piece, candidate in parts:
            if candidate.is_absent:
                piece.put(candidate.array, constant)
                continue
            found = _places(candidate, numbers, b)
            if found is None:
                computed[name] = _computing(parts, b)
                break
            piece.put(found, places)
        else:
            sources[name], constants[name] = places, constant
    a_shapes = {name: parts[0][0].whole for name, parts in bindings.items()}
    return Correspondence(tuple(rows), a_shapes, b_shapes, sources, constants, computed)


def _numbered(shapes: Mapping[str, tuple[int, ...]], factor: int = 1, first: int = 0) -> dict[str, np.ndarray]:
    """Arrays of these shapes, in which every number is another one."""
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = factor * np.arange(start, start + size).reshape(shape) + first
        start += size
    return found


def _arranged(candidate: Candidate, array: np.ndarray) -> np.ndarray:
    return reorder_axes(array, candidate.sizes, candidate.order).reshape(candidate.shape)


def _places(candidate: Candidate, numbers: Mapping[str, np.ndarray], b: Graph) -> np.ndarray | None:
    """Where the numbers of a candidate are among those of B's parameters; None if B computes them."""
    operand = candidate.operand
    if operand.piece is not None:
        return _arranged(candidate, operand.piece.take(numbers[operand.piece.name]))
    shapes = {name: array.shape for name, array in numbers.items()}
    once, twice = (_result(b, operand.node, given) for given in (numbers, _numbered(shapes, 2, 1)))
    if not np.array_equal(twice, 2 * once + 1):
        return None
    return _arranged(candidate, once.astype(np.intp))


def _result(b: Graph, node: int, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    """What B makes of its parameters alone."""
    forward = Forward(b, {name: torch.empty(0) for name in b.inputs})
    forward.give({name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in parameters.items()})
    with torch.no_grad():
        made: np.ndarray = forward.value(Ref(node)).numpy()
    return made


def _computing(parts: Sequence[tuple[Piece, Candidate]], b: Graph) -> Callable[[Mapping[str, Tensor]], np.ndarray]:
    def compute(parameters: Mapping[str, Tensor]) -> np.ndarray:
        whole = np.zeros(parts[0][0].whole)
        for piece, candidate in parts:
            operand = candidate.operand
            if operand.piece is not None:
                array = operand.piece.take(parameters[operand.piece.name].numpy())
            else:
                array = _result(b, operand.node, {name: tensor.numpy() for name, tensor in parameters.items()})
            piece.put(_arranged(candidate, array), whole)
        return whole

    return compute


# Rows


def _row(piece: Piece, candidate: Candidate, numbers: Mapping[str, np.ndarray], b: Graph) -> Row:
    operand = candidate.operand
    if candidate.is_absent:
        return Row(_with_part(piece), f"{operand.array.flat[0]:g}")
    theirs = _with_part(operand.piece) if operand.piece else _computed_name(candidate, numbers, b)
    return Row(_with_part(piece), theirs, _pattern(piece.shape, candidate))


def _computed_name(candidate: Candidate, numbers: Mapping[str, np.ndarray], b: Graph) -> str:
    """The names of which an operand is made; with indices, if it is some numbers of one."""
    names = candidate.operand.names
    places = _places(candidate, numbers, b) if len(names) == 1 else None
    if places is None:
        return " & ".join(names)
    touched = np.isin(numbers[names[0]], places)
    along = [np.flatnonzero(touched.any(axis=tuple(set(range(touched.ndim)) - {i}))) for i in range(touched.ndim)]
    if np.prod([len(indices) for indices in along]) != np.count_nonzero(touched):
        return names[0]
    while along and len(along[-1]) == touched.shape[len(along) - 1]:
        along.pop()
    cut = [None if len(found) == length else found for found, length in zip(along, touched.shape, strict=False)]
    return _with_box(names[0], cut) if cut else names[0]


def _with_part(piece: Piece) -> str:
    if piece.indices is None:
        return piece.name
    return _with_box(piece.name, [None] * piece.axis + [np.array(piece.indices)])


def _with_box(name: str, along: Sequence[np.ndarray | None]) -> str:
    """A name with the indices along its first axes, None for all, as they are written in NumPy."""
    return f"{name}[{', '.join(':' if indices is None else _ranges(indices) for indices in along)}]"


def _ranges(indices: np.ndarray) -> str:
    """Ascending indices: one number, or ranges, or a range with a step."""
    steps = np.diff(indices)
    if len(indices) == 1:
        return str(indices[0])
    if len(set(steps.tolist())) == 1:
        return f"{indices[0]}:{indices[-1] + 1}" + (f":{steps[0]}" if steps[0] > 1 else "")
    runs = [f"{run[0]}:{run[-1] + 1}" for run in np.split(indices, np.flatnonzero(steps > 1) + 1)]
    return " ".join(runs if len(runs) <= _MOST_RANGES else [*runs[: _MOST_RANGES - 2], "...", runs[-1]])


def _pattern(shape: tuple[int, ...], candidate: Candidate) -> str:
    """The axes of a piece of this shape, and how they follow in B."""
    sizes, order, theirs = candidate.sizes, candidate.order, candidate.operand.array.shape
    if is_in_order(order) and shape == theirs:
        return ""
    sizes, order = _taken_apart(sizes, order, theirs)
    letters = string.ascii_lowercase[: len(sizes)]
    ours = _grouped(shape, sizes, letters)
    return f"{ours} -> {_grouped(theirs, [sizes[i] for i in order], [letters[i] for i in order])}"


def _taken_apart(sizes: Shape, order: Shape, theirs: Shape) -> tuple[Shape, Shape]:
    """The sizes with those taken apart that are several axes of B's, and the order of all of them in B."""
    parts: dict[int, Shape] = {i: (sizes[i],) for i in order}
    places = iter(order)
    for ours, several in aligned(tuple(sizes[i] for i in order), theirs):
        group = [next(places) for _ in ours]
        if len(group) == 1 and len(several) > 1:
            parts[group[0]] = tuple(length for length in several if length > 1) or (1,)
    starts = dict(zip(range(len(sizes)), np.cumsum([0, *(len(parts[i]) for i in range(len(sizes)))]), strict=False))
    fine = tuple(length for i in range(len(sizes)) for length in parts[i])
    return fine, tuple(int(starts[i]) + k for i in order for k in range(len(parts[i])))


def _grouped(shape: Sequence[int], sizes: Sequence[int], letters: Sequence[str]) -> str:
    """The letters, with those that make up one axis of the shape in parentheses; axes of size 1 are 1."""
    left = list(zip(sizes, letters, strict=True))
    axes = []
    for length in shape:
        group: list[str] = []
        size = 1
        while left and (size < length or (length == 1 and left[0][0] == 1 and not group)):
            size *= left[0][0]
            group.append(left.pop(0)[1])
        axes.append("1" if not group else group[0] if len(group) == 1 else f"({' '.join(group)})")
    return " ".join(axes)


_NUMBER = re.compile(r"\d+")


def _generalised(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows, with those that differ in the number of a block alone as one, with {i} in its place."""
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((_NUMBER.sub("#", row.a), _NUMBER.sub("#", row.b), row.axes), []).append(row)
    for masked in alike.values():
        numbers = [_numbers(row.a) for row in masked]
        block = next((place for place in range(len(numbers[0])) if len({n[place] for n in numbers}) > 1), None)
        if block is None:
            yield from masked
            continue
        groups: dict[tuple[int, ...], list[Row]] = {}  # by the other numbers in A's name
        for row, own in zip(masked, numbers, strict=True):
            groups.setdefault((*own[:block], *own[block + 1 :]), []).append(row)
        for group in groups.values():
            general = _general(group, block)
            yield from [general] if general else group


def _numbers(name: str) -> list[int]:
    return list(map(int, _NUMBER.findall(name)))


def _general(rows: Sequence[Row], block: int) -> Row | None:
    """One row for rows whose number at `block` of A's name counts the blocks, None if the others do not follow it."""
    first = rows[0]
    blocks = [_numbers(row.a)[block] for row in rows]
    if len(rows) == 1 or len(set(blocks)) < len(rows):
        return None
    names = []
    for column in zip(*[_numbers(row.b) for row in rows], strict=True):
        slope, rest = divmod(column[1] - column[0], blocks[1] - blocks[0])
        shift = column[0] - slope * blocks[0]
        if rest or slope < 0 or any(n != slope * i + shift for n, i in zip(column, blocks, strict=True)):
            return None
        counted = "{i" if slope == 1 else f"{{{slope}i"
        names.append(f"{counted}{f'{shift:+d}' if shift else ''}}}" if slope else str(shift))
    places = itertools.count()
    a = _NUMBER.sub(lambda match: "{i}" if next(places) == block else match[0], first.a)
    made = iter(names)
    return Row(a, _NUMBER.sub(lambda _: next(made), first.b), first.axes)


# Checks


def _joined(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    return np.concatenate([np.asarray(weights[name]).reshape(-1) for name in shapes])


def _check(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"lacks {name}" for name in shapes if name not in weights]
    problems += [f"has {name}, which is none of its parameters" for name in weights if name not in shapes]
    problems += [
        f"has {name} of shape {np.shape(weights[name])}, expected {shape}"
        for name, shape in shapes.items()
        if name in weights and np.shape(weights[name]) != shape
    ]
    if problems:
        raise ConversionError(f"the checkpoint {summarize(problems, 3, '; ')}")
