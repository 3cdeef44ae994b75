"""`mutants_of`: faults that are made from a recorded model itself, one at a time.

Each is a graph that differs at one node: another number, another operation, operands in the other order, another axis,
a step or a residual left out, a square weight transposed. Nothing here compares. Start at `mutants_of`; a new kind of
fault is a function in `KINDS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from mixer_equiv.equivalence.correspondence.kinds import operation_name
from mixer_equiv.equivalence.record.graph import Graph, Node, Ref


@dataclasses.dataclass(frozen=True, eq=False)
class Mutant:
    """A graph with one fault.

    Attributes:
        kind: The kind of the fault.
        what: What was done, such as "1e-06 -> 1e-05".
        node: The number of the node that differs.
        graph: The graph.
    """

    kind: str
    what: str
    node: int
    graph: Graph


def mutants_of(graph: Graph) -> Iterator[Mutant]:
    """The faults that can be planted in the nodes that lead to an output, node by node."""
    for number in graph.needed():
        if not graph.nodes[number].is_given:
            for kind in KINDS:
                for what, node in kind(graph, graph.nodes[number]):
                    nodes = (*graph.nodes[:number], node, *graph.nodes[number + 1 :])
                    yield Mutant(kind.__name__.strip("_"), what, number, dataclasses.replace(graph, nodes=nodes))


Changed = Iterator[tuple[str, Node]]


def _number(graph: Graph, node: Node) -> Changed:
    """Another number among the arguments; a small one, such as an eps, is ten times as large."""
    for place, own in enumerate(node.arguments):
        if isinstance(own, float) and own:
            new = own * (10 if abs(own) < 1e-2 else 1.25)
            yield f"{own:g} -> {new:g}", _with_argument(node, place, new)


def _activation(graph: Graph, node: Node) -> Changed:
    """Another activation."""
    others = {
        "aten.gelu.default": "aten.relu.default",
        "aten.relu.default": "aten.silu.default",
        "aten.silu.default": "aten.relu.default",
        "aten.tanh.default": "aten.sigmoid.default",
        "aten.sigmoid.default": "aten.tanh.default",
        "lax.tanh": "lax.logistic",
        "lax.logistic": "lax.tanh",
        "lax.erf": "lax.tanh",
    }
    if node.operation in others:
        keywords = {} if node.operation == "aten.gelu.default" else node.keywords
        other = others[node.operation]
        yield f"{node.operation} -> {other}", dataclasses.replace(node, operation=other, keywords=keywords)
    if node.operation == "aten.gelu.default":
        own = node.keywords.get("approximate", "none")
        other = "none" if own == "tanh" else "tanh"
        yield f"{own} -> {other}", dataclasses.replace(node, keywords={**node.keywords, "approximate": other})


def _operands(graph: Graph, node: Node) -> Changed:
    """Operands in the other order, where that gives another result of the same shape."""
    name = operation_name(node)
    refs = node.arguments[:2]
    if name not in ("sub", "div", "bmm") or not all(isinstance(ref, Ref) for ref in refs) or len(refs) < 2:
        return
    first, second = (graph.shape(ref) for ref in refs)
    if first == second and (name != "bmm" or first[-1] == first[-2]):
        yield "swapped", dataclasses.replace(node, arguments=(refs[1], refs[0], *node.arguments[2:]))


def _axis(graph: Graph, node: Node) -> Changed:
    """A softmax over another axis."""
    if node.operation == "aten._softmax.default":
        rank = len(node.shapes[0])
        own = int(node.arguments[1]) % rank
        other = (own - 1) % rank
        yield f"axis {own} -> {other}", _with_argument(node, 1, other)


def _sum_left_out(graph: Graph, node: Node) -> Changed:
    """A sum, such as a residual, of which one term alone is left."""
    name = operation_name(node)
    refs = [argument for argument in node.arguments if isinstance(argument, Ref)]
    if name == "add" and len(refs) == 2:
        for which, ref in enumerate(refs):
            if graph.shape(ref) == node.shapes[0]:
                yield f"term {which} alone", _passing(node, ref)


def _step_left_out(graph: Graph, node: Node) -> Changed:
    """A step that gives its first operand as it is."""
    name = operation_name(node)
    ref = next((argument for argument in node.arguments if isinstance(argument, Ref)), None)
    if name in _LEFT_OUT and ref and graph.shape(ref) == node.shapes[0] and graph.nodes[ref.node].is_data:
        yield "left out", _passing(node, ref)


_LEFT_OUT = ("div", "exp", "gelu", "logistic", "mul", "relu", "silu", "_softmax", "sub", "tanh")


def _transposed(graph: Graph, node: Node) -> Changed:
    """A square weight that is not transposed where it was, so that it is used the other way round."""
    ref = node.refs[0] if node.refs else None
    is_weight = ref is not None and bool(node.parameters) and not node.is_data and len(node.shapes[0]) == 2
    if is_weight and node.operation in ("aten.t.default", "lax.transpose") and len(set(node.shapes[0])) == 1:
        assert ref is not None
        yield "not transposed", _passing(node, ref)


def _passing(node: Node, ref: Ref) -> Node:
    return dataclasses.replace(node, operation="aten.alias.default", arguments=(ref,), keywords={})


def _with_argument(node: Node, place: int, new: object) -> Node:
    return dataclasses.replace(node, arguments=(*node.arguments[:place], new, *node.arguments[place + 1 :]))


KINDS: tuple[Callable[[Graph, Node], Changed], ...] = (
    _number,
    _activation,
    _operands,
    _axis,
    _sum_left_out,
    _step_left_out,
    _transposed,
)
