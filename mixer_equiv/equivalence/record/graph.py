"""`Graph`: a forward pass as calls that run again on other parameters and inputs, whatever its framework.

A trace has the values of one pass; a graph has what made them. Recorders build graphs, `graph_file` saves them, and
`record.torch.evaluation` runs them. Nothing here runs a model. Start at `Graph`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mixer_equiv.equivalence.place import FindPlace, Place, nowhere

Shape = tuple[int, ...]

# The operations of nodes that are given and not computed.
INPUT, PARAMETER, CONSTANT = "input", "parameter", "constant"


@dataclasses.dataclass(frozen=True)
class Ref:
    """The result of a node, or of a node with several results the one at `part`."""

    node: int
    part: int | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """An argument that a framework has an object for: a dtype "float64", a memory format, a layout or the device."""

    kind: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call, or an array that is given.

    Attributes:
        operation: The framework's name of the operation, such as "aten.linear.default", or `INPUT`, `PARAMETER` or
            `CONSTANT`.
        shapes: The shapes of its results.
        arguments: The arguments by position: numbers, strings, None, a `Ref` in the place of each array, a `Setting`,
            and tuples, lists and dicts of these.
        keywords: The arguments by name.
        name: The name of an input or a parameter.
        value: The array of a constant, floats in float64.
        is_data: Whether it depends on an input.
        parameters: The names of the parameters that reach it on ways without an input.
        find_place: Gives its `place`.
    """

    operation: str
    shapes: tuple[Shape, ...]
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    value: np.ndarray | None = None
    is_data: bool = False
    parameters: frozenset[str] = frozenset()
    find_place: FindPlace = nowhere

    @property
    def is_given(self) -> bool:
        """Whether it is an input, a parameter or a constant."""
        return self.operation in (INPUT, PARAMETER, CONSTANT)

    @cached_property
    def place(self) -> Place | None:
        """The line of the model's code, and the module, that made the call."""
        return self.find_place()

    @cached_property
    def refs(self) -> tuple[Ref, ...]:
        """The results that it takes, in the order of its arguments."""
        return tuple(refs_in((self.arguments, self.keywords)))


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order of computation.

    Attributes:
        nodes: The nodes; each takes results of earlier ones alone.
        inputs: The numbers of the nodes of inputs, by name.
        parameters: The numbers of the nodes of parameters, by name. Parameters that no call takes have none.
        outputs: The results of the model by their paths in what it returns; the path of a single array is "".
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[str, int]
    parameters: Mapping[str, int]
    outputs: Mapping[str, Ref]

    def shape(self, ref: Ref) -> Shape:
        """The shape of a result."""
        return _shape(self.nodes, ref)

    def needed(self, takes: Callable[[int], Iterable[Ref]] | None = None) -> tuple[int, ...]:
        """The numbers of the nodes on which an output depends, in order; `takes` gives what a node takes now."""
        reached = {ref.node for ref in self.outputs.values()}
        for number in range(len(self.nodes) - 1, -1, -1):
            if number in reached:
                reached.update(ref.node for ref in (takes(number) if takes else self.nodes[number].refs))
        return tuple(sorted(reached))


def _shape(nodes: Sequence[Node], ref: Ref) -> Shape:
    return nodes[ref.node].shapes[ref.part or 0]


def split_arguments(given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments, whose names are numbers, in their order, and the others by name."""
    positional = sorted((name for name in given if name.isdecimal()), key=int)
    return [given[name] for name in positional], {n: value for n, value in given.items() if not n.isdecimal()}


def refs_in(value: Any) -> Iterator[Ref]:
    """Every `Ref` in nested tuples, lists and mappings, in order."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from refs_in(item)


class GraphBuilder:
    """Collects the nodes of a graph while a model runs.

    A recorder numbers its values. `results` are those of calls by the numbers of their values, and `input_names` the
    names of inputs by theirs.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: dict[str, int] = {}
        self.parameters: dict[str, int] = {}
        self.results: dict[int, Ref] = {}
        self.input_names: dict[int, str] = {}

    def ref(self, number: int, name: str | None, array: Any, to_numpy: Callable[[Any], np.ndarray]) -> Ref:
        """The result that is the value with this number.

        What no call has made gets a node where it is first taken: an input, a parameter if it has a `name`, or else a
        constant, whose value is `to_numpy` of `array`.
        """
        if number not in self.results:
            shape = tuple(np.shape(array))
            if number in self.input_names:
                self.results[number] = self.give(INPUT, shape, name=self.input_names[number])
            elif name is not None:
                self.results[number] = self.give(PARAMETER, shape, name=name)
            else:
                self.results[number] = self.give(CONSTANT, shape, value=to_numpy(array))
        return self.results[number]

    def give(self, operation: str, shape: Shape, *, name: str = "", value: np.ndarray | None = None) -> Ref:
        """Add an input, a parameter or a constant."""
        number = len(self.nodes)
        if operation != CONSTANT:
            (self.inputs if operation == INPUT else self.parameters)[name] = number
        parameters = frozenset({name}) if operation == PARAMETER else frozenset[str]()
        self.nodes.append(
            Node(operation, (shape,), name=name, value=value, is_data=operation == INPUT, parameters=parameters)
        )
        return Ref(number)

    def call(
        self,
        operation: str,
        shapes: tuple[Shape, ...],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any] | None = None,
        find_place: FindPlace = nowhere,
    ) -> int:
        """Add a call, and return its number."""
        sources = [self.nodes[ref.node] for ref in refs_in((arguments, keywords or {}))]
        parameters = frozenset[str]().union(*(source.parameters for source in sources if not _is_computed_data(source)))
        self.nodes.append(
            Node(
                operation,
                shapes,
                arguments,
                keywords or {},
                is_data=any(source.is_data for source in sources),
                parameters=parameters,
                find_place=find_place,
            )
        )
        return len(self.nodes) - 1

    def shape(self, ref: Ref) -> Shape:
        """The shape of a result."""
        return _shape(self.nodes, ref)

    def graph(self, outputs: Mapping[str, Ref]) -> Graph:
        """The graph of what was added, with these outputs."""
        return Graph(tuple(self.nodes), self.inputs, self.parameters, outputs)


def _is_computed_data(node: Node) -> bool:
    return node.is_data and not node.is_given
