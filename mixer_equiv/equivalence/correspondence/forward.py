"""`Forward`: a graph that is run step by step, as far as its parameters are known.

Start at `Forward`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.pieces import Piece, piece_with
from mixer_equiv.equivalence.record.graph import CONSTANT, Graph, Node, Ref
from mixer_equiv.equivalence.record.torch.evaluation import constant, run_node


class Instead(NamedTuple):
    """Another way to make the results of a node, by values of the pass.

    Attributes:
        compute: Makes them.
        takes: The results that it takes; None if these are those of the node's own call.
    """

    compute: Callable[[Callable[[Ref], Tensor]], Any]
    takes: tuple[Ref, ...] | None = None


class Forward:
    """One pass.

    Attributes:
        graph: What is run.
        order: The numbers of the nodes that depend on an input and lead to an output.
        at: The number from which on nodes are to be run.
        values: The results of nodes, by their numbers.
        known: The parameters, by name.
        instead: What nodes compute in the place of their own calls, by their numbers; see `change`.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Tensor]) -> None:
        self.graph = graph
        needed = graph.needed()
        self.values: dict[int, Any] = {}
        for number in needed:
            node = graph.nodes[number]
            if node.operation == CONSTANT:
                self.values[number] = constant(node)
            elif node.is_given and node.is_data:
                self.values[number] = inputs[node.name]
        self.known: dict[str, Tensor] = {}
        self.instead: dict[int, Instead] = {}
        self.at = 0
        self.change({})

    # Parameters

    def give(self, parameters: Mapping[str, Tensor]) -> None:
        """Make parameters known."""
        self.known.update(parameters)

    def forget(self, names: Iterable[str]) -> None:
        """Make parameters unknown, and what was computed of them."""
        gone = set(names)
        for name in gone:
            del self.known[name]
        for number in [n for n in self.values if not self.graph.nodes[n].parameters.isdisjoint(gone)]:
            if not self.graph.nodes[number].is_data:
                del self.values[number]

    def unknown(self, number: int) -> list[str]:
        """The names of the parameters that a node takes and that are not known."""
        if number in self.instead and self.instead[number].takes is not None:
            return []
        return sorted(self.graph.nodes[number].parameters - self.known.keys())

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""
        return self.graph.nodes[self.graph.parameters[name]].shapes[0]

    # Running

    def value(self, ref: Ref, local: dict[int, Any] | None = None, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """A result: of a node that was run, or one that needs no input, which is computed where it is needed.

        `given` are parameters that count here alone, and `local` the results that were made with them.
        """
        number, node = ref.node, self.graph.nodes[ref.node]
        local, given = {} if local is None else local, given or {}
        made: Any
        if number in local:
            made = local[number]
        elif node.is_given and node.name in given and not node.is_data:
            made = given[node.name]
        elif number in self.values and (node.is_data or given.keys().isdisjoint(node.parameters)):
            made = self.values[number]
        elif node.is_given:
            made = self.known[node.name]
        else:
            made = self.run(number, local, given)
            (local if node.parameters & given.keys() else self.values)[number] = made
        result: Tensor = made if ref.part is None else made[ref.part]
        return result

    def run(self, number: int, local: dict[int, Any], given: Mapping[str, Tensor]) -> Any:
        """Make the call of a node."""

        def result_of(ref: Ref) -> Tensor:
            return self.value(ref, local, given)

        if number in self.instead:
            return self.instead[number].compute(result_of)
        return run_node(self.graph.nodes[number], result_of)

    def advance(self) -> bool:
        """Run to the next node that takes an unknown parameter, or to the end; whether there is such a node."""
        for number in self.rest:
            self.at = number
            if self.unknown(number):
                return True
            self.values[number] = self.run(number, {}, {})
        self.at = len(self.graph.nodes)
        return False

    @property
    def rest(self) -> list[int]:
        """The numbers of the nodes that are to be run."""
        return self.order[bisect.bisect_left(self.order, self.at) :]

    @property
    def is_at_end(self) -> bool:
        """Whether all was run."""
        return not self.rest

    def change(self, instead: Mapping[int, Instead]) -> None:
        """Let nodes compute something else, by their numbers, and all others their own calls."""
        self.instead = dict(instead)
        nodes = self.graph.nodes
        self.order = [n for n in self.graph.needed(self.takes) if nodes[n].is_data and not nodes[n].is_given]

    def takes(self, number: int) -> tuple[Ref, ...]:
        """The results that a node takes."""
        instead = self.instead.get(number)
        return self.graph.nodes[number].refs if instead is None or instead.takes is None else instead.takes

    def results(self, number: int) -> list[np.ndarray]:
        """The results of a node that are arrays of floats."""
        made = self.values[number] if number in self.values else self.value(Ref(number))
        held = made if isinstance(made, tuple | list) else [made]
        return [t.detach().numpy() for t in held if isinstance(t, Tensor) and t.is_floating_point()]

    # Several nodes as a function of parameters

    def run_group(self, group: Sequence[int], given: Mapping[str, Tensor]) -> Tensor:
        """The first result of the last of these nodes, on such parameters."""
        local: dict[int, Any] = {}
        for number in group:
            local[number] = self.run(number, local, given)
        made = local[group[-1]]
        result: Tensor = made[0] if isinstance(made, tuple | list) else made
        return result

    def size(self, number: int) -> int:
        """The number of elements of a node's first result."""
        return math.prod(self.graph.nodes[number].shapes[0])

    def node(self, number: int) -> Node:
        return self.graph.nodes[number]

    def cut(
        self, last: int, group: Sequence[int], names: Sequence[str], flow: Sequence[np.ndarray]
    ) -> list[list[Piece]]:
        """The pieces of parameters that decide each part of a result; empty if one decides what is no piece."""
        rng = np.random.default_rng(0)
        with torch.enable_grad():
            given = {name: torch.from_numpy(rng.standard_normal(self.shape_of(name))) for name in names}
            for tensor in given.values():
                tensor.requires_grad_()
            result = self.run_group(group, given).reshape(-1)
            found = []
            for places in flow:
                weights = torch.from_numpy(rng.standard_normal(len(places)))
                total = (result[torch.from_numpy(places)] * weights).sum()
                found.append(torch.autograd.grad(total, list(given.values()), retain_graph=True, allow_unused=True))
        pieces: list[list[Piece]] = []
        for gradients in found:
            touched = [piece_with(n, g.numpy() != 0) for n, g in zip(names, gradients, strict=True) if g is not None]
            if len(touched) < len(names) or any(piece is None for piece in touched):
                return []
            pieces.append([piece for piece in touched if piece is not None])
        return pieces
