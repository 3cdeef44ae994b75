"""`Offers`: the values and the operands of one pass of a model, in which another model's are looked for.

Start at `Offers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.flow import parts_in_flow
from mixer_equiv.equivalence.correspondence.forward import Forward
from mixer_equiv.equivalence.correspondence.pieces import Operand, Piece
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE, Fingerprint
from mixer_equiv.equivalence.record.graph import Graph


class Made:
    """A value of a pass: the number of the node that made it first, and its sums."""

    def __init__(self, node: int, array: np.ndarray) -> None:
        self.node, self.fingerprint = node, Fingerprint(array)


class _Size:
    """The values with one number of elements, by the sums of their elements."""

    def __init__(self, values: list[Made]) -> None:
        self.values = values
        totals = np.array([value.fingerprint.total for value in values])
        spreads = np.sqrt([value.fingerprint.size * value.fingerprint.squares for value in values])
        rank = np.argsort(totals)
        self.totals, self.tolerances = totals[rank], TOLERANCE * spreads[rank]
        self.widest = float(self.tolerances.max())

    def may_have(self, totals: np.ndarray) -> np.ndarray:
        """Which of these sums are those of a value."""
        low = np.searchsorted(self.totals, totals - self.widest)
        high = np.searchsorted(self.totals, totals + self.widest, side="right")
        found: np.ndarray = high > low
        for at in zip(*np.nonzero(found), strict=True):
            span = slice(low[at], high[at])
            found[at] = bool((np.abs(self.totals[span] - totals[at]) <= self.tolerances[span]).any())
        return found


class Offers:
    """What a model has on these parameters and inputs."""

    def __init__(self, graph: Graph, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.forward = Forward(graph, inputs)
        self.forward.give(parameters)
        with torch.no_grad():
            self.forward.advance()
        self.parameters = parameters
        self._flows: dict[int, list[np.ndarray]] = {}
        self.by_size = {size: _Size(values) for size, values in self._values().items()}
        self._operands: dict[int, list[Operand]] = {}
        self._count = 0
        for node, array in self._arrays():
            self._offer(node, array)
        self._uses: dict[tuple[str, ...], np.ndarray] = {}

    def _values(self) -> dict[int, list[Made]]:
        found: dict[int, list[Made]] = {}
        for number in self.forward.order:
            results = self.forward.results(number)
            for array in [*results, *(results[0].reshape(-1)[places] for places in self._flow(number))]:
                made = Made(number, array)
                if made.fingerprint.size > 1 and 0 < made.fingerprint.squares < math.inf:
                    alike = found.setdefault(array.size, [])
                    if not any(made.fingerprint.matches(other.fingerprint) for other in alike):
                        alike.append(made)
        return found

    def _flow(self, number: int) -> list[np.ndarray]:
        """The parts into which the result of a node that takes parameters is divided."""
        if number not in self._flows:
            is_asked = bool(self.graph.nodes[number].parameters) and bool(self.graph.nodes[number].shapes[0])
            flow = parts_in_flow(self.graph, self.forward.order, number, self.forward.value) if is_asked else []
            self._flows[number] = flow
        return self._flows[number]

    def _arrays(self) -> list[tuple[int, np.ndarray]]:
        """The parameters that are used, then what is computed of them."""
        nodes = self.graph.nodes
        made = [n for n in self.graph.needed() if nodes[n].parameters and not nodes[n].is_data]
        made.sort(key=lambda n: not nodes[n].is_given)
        return [(n, array) for n in made for array in self.forward.results(n)]

    def _offer(self, node: int, array: np.ndarray, piece: Piece | None = None) -> None:
        made = self.graph.nodes[node]
        if piece is None and made.is_given:
            piece = Piece(made.name, made.shapes[0])
        alike = self._operands.setdefault(array.size, [])
        names = (piece.name,) if piece else tuple(sorted(made.parameters))
        operand = Operand(self._count, array, names, piece, node)
        if array.size and not any(operand.fingerprint.matches(other.fingerprint) for other in alike):
            alike.append(operand)
            self._count += 1

    def sizes(self) -> list[int]:
        """The numbers of elements that parameters have."""
        return list(self._operands)

    def operands(self, size: int) -> list[Operand]:
        """Parameters, what is computed of them, and the parts that the model tells apart, of so many elements."""
        for piece, node in self._parts.pop(size, ()):
            self._offer(node, np.ascontiguousarray(piece.take(self._array(piece.name))), piece)
        return self._operands.get(size, [])

    def _array(self, name: str) -> np.ndarray:
        return self.parameters[name].detach().numpy()

    @cached_property
    def _parts(self) -> dict[int, list[tuple[Piece, int]]]:
        """The parts of fused parameters that are not offered yet, with the nodes that take them, by their sizes."""
        found: dict[int, list[tuple[Piece, int]]] = {}
        for number in self.forward.order:
            names = self.graph.nodes[number].parameters
            if not names or not self.graph.nodes[number].shapes[0]:
                continue
            flow = self._flow(number)
            for pieces in self.forward.cut(number, [number], tuple(sorted(names)), flow) if flow else ():
                for piece in pieces:
                    if piece.is_part:
                        found.setdefault(piece.size, []).append((piece, number))
        return found

    def again(self, operand: Operand) -> Operand:
        """The operand that another pass of the same model had, on these parameters."""
        if operand.piece is not None:
            array = operand.piece.take(self._array(operand.piece.name))
        else:
            array = next(a for a in self.forward.results(operand.node) if a.shape == operand.array.shape)
        return dataclasses.replace(operand, array=array)

    def next_use(self, operand: Operand, position: int) -> tuple[bool, int]:
        """When the model next uses an operand after node `position`; what is never used again comes last."""
        if operand.names not in self._uses:
            mine, nodes = set(operand.names), self.graph.nodes
            self._uses[operand.names] = np.array([n for n in self.forward.order if mine <= nodes[n].parameters])
        numbers = self._uses[operand.names]
        at = int(np.searchsorted(numbers, position, side="right"))
        return at == len(numbers), int(numbers[at]) if at < len(numbers) else 0

    def find(self, array: np.ndarray) -> list[Made]:
        """The values that have these elements, in any order."""
        of_size = self.by_size.get(array.size)
        if of_size is None:
            return []
        own = Fingerprint(array)
        if not math.isfinite(own.squares) or not of_size.may_have(np.array([own.total]))[0]:
            return []
        return [value for value in of_size.values if own.matches(value.fingerprint)]

    def values_after(self, position: int, size: int) -> list[Made]:
        """The values of this size that are made after a node, in order."""
        of_size = self.by_size.get(size)
        return [] if of_size is None else [value for value in of_size.values if value.node > position]

    def array_of(self, value: Made) -> np.ndarray | None:
        """The array of a value, None for a part of one."""
        return next((a for a in self.forward.results(value.node) if a.size == value.fingerprint.size), None)

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs by their paths."""
        return {path: self.forward.value(ref).numpy() for path, ref in self.graph.outputs.items()}
