"""`Change`: another way to compute the result of one node, and the tables of those that are looked for.

A change is tried where the next step cannot be found, and is right if with it the next step is. Start at `changes_of`;
a new kind of change is a function in `KINDS`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixer_equiv.equivalence.correspondence.forward import Forward, Instead
from mixer_equiv.equivalence.correspondence.kinds import FUNCTIONS, MOVES, PRODUCTS, SUMS, operation_name
from mixer_equiv.equivalence.correspondence.pieces import Operand
from mixer_equiv.equivalence.record.graph import Graph, Node, Ref
from mixer_equiv.equivalence.record.torch.evaluation import run_node

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf GELU": functional.gelu,
    "tanh GELU": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid GELU": lambda x: x * torch.sigmoid(1.702 * x),
    "ReLU": torch.relu,
    "SiLU": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "ReLU6": functional.relu6,
    "squared ReLU": lambda x: torch.relu(x) ** 2,
    "ELU": functional.elu,
    "leaky ReLU": functional.leaky_relu,
    "Mish": functional.mish,
    "softplus": functional.softplus,
    "hard swish": functional.hardswish,
    "no activation": lambda x: x,
}

# Sums behind the missing step, and values before a suspect, that are tried.
_MOST_BRANCHES = 3

_ACTIVATION_OF = {"relu": "ReLU", "silu": "SiLU", "tanh": "tanh", "sigmoid": "sigmoid", "logistic": "sigmoid"}


@dataclasses.dataclass(frozen=True, eq=False)
class Change:
    """What B computes in the place of a node of A.

    Attributes:
        node: The number of the node.
        kind: What differs, such as "activation".
        expected: What A has.
        found: What B has.
        instead: Computes it.
    """

    node: int
    kind: str
    expected: str
    found: str
    instead: Instead

    @property
    def what(self) -> tuple[str, str, str]:
        """What it is, at whichever node."""
        return self.kind, self.expected, self.found


@dataclasses.dataclass(frozen=True, eq=False)
class Suspects:
    """Nodes of A that may differ.

    Attributes:
        forward: The pass of A.
        numbers: Their numbers, in order.
        literals: Numbers that B may have, those that A does not have first.
        new_literals: Numbers of B's code that A does not have.
        operands: Parameters of B with one axis that it uses next and nothing of A has.
    """

    forward: Forward
    numbers: Sequence[int]
    literals: Sequence[float]
    new_literals: Sequence[float] = ()
    operands: Sequence[Operand] = ()

    def node(self, number: int) -> Node:
        return self.forward.graph.nodes[number]


def changes_of(suspects: Suspects) -> Iterator[Change]:
    """The changes of every kind, kind by kind; none takes parameters of A away."""
    for kind in KINDS:
        yield from kind(suspects)


def _single_activations(suspects: Suspects) -> Iterator[Change]:
    """Another activation in the place of one that is a single call."""
    for number in suspects.numbers:
        node = suspects.node(number)
        own = _activation_name(node)
        for name, function in ACTIVATIONS.items() if own else ():
            if name != own:
                yield Change(number, "activation", own or "", name, _of(node.refs[0], function))


def _activation_name(node: Node) -> str | None:
    name = operation_name(node)
    if name == "gelu":
        return "tanh GELU" if node.keywords.get("approximate", "none") == "tanh" else "erf GELU"
    return _ACTIVATION_OF.get(name)


def _of(ref: Ref, function: Callable[[Tensor], Tensor]) -> Instead:
    return Instead(lambda result_of: function(result_of(ref)), (ref,))


def _written_activations(suspects: Suspects) -> Iterator[Change]:
    """Another activation in the place of one that is written out in several calls, by which of these it is."""
    for start, last in _pointwise_runs(suspects):
        made = suspects.forward.value(Ref(last))
        given = suspects.forward.value(start)
        own = next((n for n, f in ACTIVATIONS.items() if _is_close(f(given).reshape(made.shape), made)), None)
        for name, function in ACTIVATIONS.items() if own else ():
            if name != own:
                yield Change(last, "activation", own or "", name, _of(start, function))


def _is_close(result: Tensor, wanted: Tensor) -> bool:
    return bool((result - wanted).norm() <= 1e-6 * wanted.norm())


def _pointwise_runs(suspects: Suspects) -> Iterator[tuple[Ref, int]]:
    """Neighbouring suspects that work on each number by itself, from one value: this value, and the last of them."""
    pointwise = FUNCTIONS | SUMS | PRODUCTS | MOVES
    forward = suspects.forward
    for last in suspects.numbers:
        if last not in forward.values:
            continue
        run, todo, sources = {last}, [last], dict[Ref, None]()
        while todo:
            number = todo.pop()
            for ref in suspects.node(number).refs:
                if not suspects.node(ref.node).is_data:
                    continue
                if ref.node in suspects.numbers and operation_name(suspects.node(ref.node)) in pointwise:
                    if ref.node not in run:
                        run.add(ref.node)
                        todo.append(ref.node)
                else:
                    sources[ref] = None
        one = next(iter(sources), None)
        is_pointwise = operation_name(suspects.node(last)) in pointwise
        if not is_pointwise or len(run) == 1 or len(sources) > 1 or one is None:
            continue
        if math.prod(forward.graph.shape(one)) == forward.size(last):
            yield one, last


def _literals(suspects: Suspects) -> Iterator[Change]:
    """Another number in the place of one: an eps, a scale."""
    for number in suspects.numbers:
        node = suspects.node(number)
        for own, replaced in _with_literals(node, suspects.forward.graph):
            for new in suspects.literals:
                if not _is_same(new, own):
                    yield Change(number, _literal_kind(own), f"{own:.6g}", f"{new:.6g}", replaced(new))
        if "scaled_dot_product" in node.operation:
            own_scale = node.keywords.get("scale")
            shape = suspects.forward.graph.shape(node.refs[0])
            usual = shape[-1] ** -0.5 if own_scale is None else own_scale
            for new in suspects.literals:
                if not _is_same(new, usual):
                    changed = dataclasses.replace(node, keywords={**node.keywords, "scale": new})
                    yield Change(number, "scale", f"{usual:.6g}", f"{new:.6g}", _calling(changed))


def _literal_kind(own: float) -> str:
    return "eps" if 0 < abs(own) < 1e-2 else "number"


def _is_same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-12)


def _calling(node: Node) -> Instead:
    return Instead(lambda result_of: run_node(node, result_of))


def _with_literals(node: Node, graph: Graph) -> Iterator[tuple[float, Callable[[float], Instead]]]:
    """The numbers that a node takes, as arguments or as constants, and how to make its call with another one."""
    for place, argument in enumerate(node.arguments):
        if isinstance(argument, float):

            def with_argument(new: float, place: int = place) -> Instead:
                arguments = (*node.arguments[:place], new, *node.arguments[place + 1 :])
                return _calling(dataclasses.replace(node, arguments=arguments))

            yield argument, with_argument
    for ref in dict.fromkeys(node.refs):
        held = graph.nodes[ref.node]
        if held.value is not None and _is_number(held):

            def with_constant(new: float, ref: Ref = ref, shape: tuple[int, ...] = held.shapes[0]) -> Instead:
                replaced = torch.full(shape, new, dtype=torch.float64)
                return Instead(lambda result_of: run_node(node, lambda r: replaced if r == ref else result_of(r)))

            yield float(held.value.reshape(())), with_constant


def _is_number(node: Node) -> bool:
    return node.value is not None and node.value.size == 1 and node.value.dtype.kind == "f"


def _axes(suspects: Suspects) -> Iterator[Change]:
    """A softmax over another axis."""
    for number in suspects.numbers:
        node = suspects.node(number)
        if operation_name(node) in ("_softmax", "softmax", "_log_softmax"):
            rank = len(node.shapes[0])
            own = int(node.arguments[1]) % rank
            for axis in range(rank):
                if axis != own:
                    changed = dataclasses.replace(node, arguments=(node.arguments[0], axis, *node.arguments[2:]))
                    yield Change(number, "axis", f"axis {own}", f"axis {axis}", _calling(changed))


def _masks(suspects: Suspects) -> Iterator[Change]:
    """Attention that sees all, or only what is before."""
    for number in suspects.numbers:
        node = suspects.node(number)
        if "scaled_dot_product" not in node.operation:
            continue
        place = 4 if "flash_attention_for_cpu" in node.operation else 5
        own = bool(node.arguments[place]) if len(node.arguments) > place else False
        padded = [*node.arguments, *[0.0 if i == 3 else None for i in range(len(node.arguments), place)]]
        changed = dataclasses.replace(node, arguments=(*padded[:place], not own, *node.arguments[place + 1 :]))
        names = "no mask", "a causal mask"
        yield Change(number, "mask", names[own], names[not own], _calling(changed))


def _operands(suspects: Suspects) -> Iterator[Change]:
    """Operands in the other order."""
    for number in suspects.numbers:
        node = suspects.node(number)
        refs = [argument for argument in node.arguments if isinstance(argument, Ref)]
        if operation_name(node) in ("sub", "div", "bmm", "matmul", "pow", "atan2") and len(refs) == 2:
            changed = dataclasses.replace(node, arguments=(refs[1], refs[0], *node.arguments[2:]))
            yield Change(number, "order of operands", "first, second", "second, first", _calling(changed))
        listed = node.arguments[0] if node.arguments else None
        if operation_name(node) in ("cat", "concatenate", "stack") and isinstance(listed, tuple | list):
            for order in itertools.islice(itertools.permutations(listed), 1, 6):
                changed = dataclasses.replace(node, arguments=(list(order), *node.arguments[1:]))
                yield Change(number, "order of operands", "as given", "another", _calling(changed))


def _left_out(suspects: Suspects) -> Iterator[Change]:
    """A step that B does not have: one of its operands goes on as it is."""
    for number in suspects.numbers:
        node = suspects.node(number)
        for ref in dict.fromkeys(node.refs):
            shape = suspects.forward.graph.shape(ref)
            is_step = operation_name(node) not in MOVES | SUMS
            if suspects.node(ref.node).is_data and shape == node.shapes[0] and is_step:
                several = len(node.shapes) > 1
                instead = _passing(ref, len(node.shapes)) if several else _of(ref, lambda x: x)
                yield Change(number, "step", operation_name(node), "nothing", instead)


def _passing(ref: Ref, results: int) -> Instead:
    rest = [torch.empty(0)] * (results - 1)
    return Instead(lambda result_of: (result_of(ref), *rest), (ref,))


def terms_left_out(suspects: Suspects) -> Iterator[Change]:
    """A term that a sum in B does not have, such as a branch with the missing step; with it go its parameters."""
    forward = suspects.forward
    behind, sums = {forward.at}, list(suspects.numbers)
    for number in forward.rest:
        if not behind.isdisjoint(ref.node for ref in suspects.node(number).refs):
            behind.add(number)
            sums.append(number)
    sums = [number for number in dict.fromkeys(sums) if operation_name(suspects.node(number)) in SUMS]
    for number in sums[: len(suspects.numbers) + _MOST_BRANCHES]:
        node = suspects.node(number)
        for ref in dict.fromkeys(node.refs):
            is_known = ref.node in forward.values and suspects.node(ref.node).is_data and ref.node not in behind
            if is_known and forward.graph.shape(ref) == node.shapes[0]:
                yield Change(
                    number, "step", f"{operation_name(node)} of two terms", "one of them", _of(ref, lambda x: x)
                )


def _inserted_sums(suspects: Suspects) -> Iterator[Change]:
    """The addition of a value that A has, such as a residual, on what a step takes."""
    forward = suspects.forward
    for number, ref in _operands_of(suspects):
        shape, found = forward.graph.shape(ref), 0
        for other in reversed(forward.order):
            made = forward.graph.nodes[other]
            if other >= ref.node or other not in forward.values or made.shapes != (shape,) or found == _MOST_BRANCHES:
                continue
            if operation_name(made) not in MOVES:
                found += 1
                instead = _with_sum(suspects.node(number), ref, Ref(other))
                yield Change(number, "step", "nothing", f"addition of an earlier {operation_name(made)}", instead)


def _with_sum(node: Node, ref: Ref, other: Ref) -> Instead:
    return Instead(
        lambda result_of: run_node(node, lambda r: result_of(r) + result_of(other) if r == ref else result_of(r))
    )


def _inserted(suspects: Suspects) -> Iterator[Change]:
    """A step that only B has, on what one of A takes."""
    for number, ref in _operands_of(suspects):
        for name, function in INSERTED.items():
            yield Change(number, "step", "nothing", name, _on_operand(suspects.node(number), ref, function))


def _inserted_numbers(suspects: Suspects) -> Iterator[Change]:
    """A product with a number, or an addition of one, that only B has."""
    for number, ref in _operands_of(suspects):
        for new in suspects.new_literals:
            for name, function in (("product with", torch.mul), ("addition of", torch.add)):
                instead = _on_operand(suspects.node(number), ref, function, new)
                yield Change(number, "step", "nothing", f"{name} {new:.6g}", instead)


def _inserted_parameters(suspects: Suspects) -> Iterator[Change]:
    """A bias or a scale that only B has."""
    for number, ref in _operands_of(suspects):
        shape = suspects.forward.graph.shape(ref)
        for operand in suspects.operands:
            for axis in reversed(range(1, len(shape))):
                if shape[axis] == operand.array.size:
                    along = torch.from_numpy(operand.array).reshape(-1, *[1] * (len(shape) - 1 - axis))
                    for name, function in (("addition of", torch.add), ("product with", torch.mul)):
                        instead = _on_operand(suspects.node(number), ref, function, along)
                        yield Change(number, "step", "nothing", f"{name} {' & '.join(operand.names)}", instead)


def _operands_of(suspects: Suspects) -> Iterator[tuple[int, Ref]]:
    """The suspects with each array that they take and that depends on an input."""
    for number in suspects.numbers:
        for ref in dict.fromkeys(suspects.node(number).refs):
            if suspects.node(ref.node).is_data and suspects.forward.graph.shape(ref):
                yield number, ref


def _on_operand(node: Node, ref: Ref, function: Callable[..., Tensor], *others: Any) -> Instead:
    """The call of a node, with a function of one array that it takes in the place of this."""
    return Instead(
        lambda result_of: run_node(node, lambda r: function(result_of(r), *others) if r == ref else result_of(r))
    )


INSERTED: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: function for name, function in ACTIVATIONS.items() if name != "no activation"},
    "softmax": lambda x: x.softmax(-1),
    "LayerNorm without parameters, eps 1e-06": lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-6),
    "LayerNorm without parameters, eps 1e-05": lambda x: functional.layer_norm(x, x.shape[-1:], eps=1e-5),
    "division by the length": lambda x: functional.normalize(x, dim=-1),
    "a change of sign": lambda x: -x,
}

KINDS: tuple[Callable[[Suspects], Iterator[Change]], ...] = (
    _single_activations,
    _written_activations,
    _masks,
    _axes,
    _literals,
    _operands,
    _left_out,
    _inserted_sums,
    _inserted,
    _inserted_numbers,
    _inserted_parameters,
)


def taken_from(node: int, operation: str, array: Tensor, found: str) -> Change:
    """A value of B in the place of a node's result, where nothing tells what B does."""
    return Change(node, "unknown", operation, found, Instead(lambda _: array, ()))


def literals_of(graph: Graph) -> list[float]:
    """The numbers that a model has in its code, each once."""
    found: dict[float, None] = {}
    for number in graph.needed():
        node = graph.nodes[number]
        if node.value is not None and _is_number(node):
            found[float(node.value.reshape(()))] = None
        for argument in (*node.arguments, *node.keywords.values()):
            if isinstance(argument, float):
                found[argument] = None
    return [number for number in found if math.isfinite(number) and number]


def candidate_literals(a: Graph, b: Graph) -> tuple[list[float], list[float]]:
    """Numbers that B may have in the place of one of A: those of its code that A does not have, and all that may be."""
    own, theirs = literals_of(a), literals_of(b)
    new = [number for number in theirs if not any(_is_same(number, other) for other in own)]
    axes = sorted({length for graph in (a, b) for node in graph.nodes for shape in node.shapes for length in shape})
    derived = (
        [1 / number for number in theirs] + [1.0] + [n**-0.5 for n in axes if n > 1] + [1 / n for n in axes if n > 1]
    )
    return new, list(dict.fromkeys([*new, *theirs, *derived]))
