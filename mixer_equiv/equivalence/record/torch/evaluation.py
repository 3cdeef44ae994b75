"""`evaluate`: run a graph again in torch, on other parameters and inputs of the same shapes.

Start at `evaluate`; a search runs nodes one by one with `run_node`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixer_equiv.equivalence.record.graph import CONSTANT, Graph, Node, Ref, Setting
from mixer_equiv.equivalence.record.precision import device
from mixer_equiv.equivalence.record.torch.arguments import map_leaves
from mixer_equiv.equivalence.record.torch.lax_rules import LAX_RULES
from mixer_equiv.equivalence.record.torch.settings import object_of
from mixer_equiv.errors import NotFollowedError

# A view of memory that was in order when the pass was recorded may be of memory in another order now.
_AS_RESHAPE = frozenset({"aten.view.default", "aten._unsafe_view.default"})


def evaluate(graph: Graph, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a graph by their paths, on parameters and inputs by their names."""
    values: dict[int, Any] = {}
    for number in graph.needed():
        node = graph.nodes[number]
        if node.operation == CONSTANT:
            values[number] = constant(node)
        elif node.is_given:
            values[number] = (inputs if node.is_data else parameters)[node.name]
        else:
            values[number] = run_node(node, lambda ref: pick(values, ref))
    return {path: pick(values, ref) for path, ref in graph.outputs.items()}


def pick(values: Mapping[int, Any], ref: Ref) -> Tensor:
    """The result that `ref` names, of the nodes' values."""
    value = values[ref.node]
    result: Tensor = value if ref.part is None else value[ref.part]
    return result


def constant(node: Node) -> Tensor:
    """The array of a constant."""
    return torch.from_numpy(node.value).to(device())


def run_node(node: Node, result_of: Callable[[Ref], Tensor]) -> Any:
    """Make the call of a node on results; one that writes into tensors writes into copies, and gives these."""

    def replace(leaf: Any) -> Any:
        return result_of(leaf) if isinstance(leaf, Ref) else object_of(leaf)

    arguments, keywords = map_leaves((Ref, Setting), replace, (list(node.arguments), dict(node.keywords)))
    namespace, _, name = node.operation.partition(".")
    if namespace == "lax":
        if name not in LAX_RULES:
            raise NotFollowedError(f"{node.operation} cannot be run again; verify a writing without it")
        return LAX_RULES[name](*arguments, **keywords)
    if node.operation in _AS_RESHAPE:
        return arguments[0].reshape(arguments[1])
    if node.operation == "aten.native_batch_norm.default" and _asks_for_statistics(arguments):
        return _batch_norm(*arguments[:5], eps=arguments[7])
    function, written = _resolve(node.operation)
    if not written:
        return function(*arguments, **keywords)
    made = []
    for name, place in written:
        held = keywords[name] if name in keywords else arguments[place] if place < len(arguments) else None
        if held is None:
            continue
        copies = [tensor.clone() for tensor in held] if isinstance(held, Sequence) else held.clone()
        made += copies if isinstance(copies, list) else [copies]
        if name in keywords:
            keywords[name] = copies
        else:
            arguments[place] = copies
    function(*arguments, **keywords)
    return tuple(made)


def _asks_for_statistics(arguments: Sequence[Any]) -> bool:
    """Whether a BatchNorm with its statistics is to be differentiated after these."""
    return not arguments[5] and any(held.requires_grad for held in arguments[3:5])


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A BatchNorm with its statistics, after which torch's own cannot be differentiated."""

    def along(channels: Tensor) -> Tensor:
        return channels.reshape(-1, *[1] * (x.ndim - 2))

    scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
    result = (x - along(mean)) * along(scale)
    nothing = x.new_empty(0)
    return (result if bias is None else result + along(bias)), nothing, nothing


@functools.cache
def _resolve(operation: str) -> tuple[Callable[..., Any], tuple[tuple[str, int], ...]]:
    """The operation of this name, and the names and places of the arguments into which it writes."""
    namespace, name, overload = operation.split(".")
    function = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    arguments = enumerate(function._schema.arguments)
    written = [(a.name, i) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return function, tuple(written)
