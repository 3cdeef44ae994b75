"""`parts_in_flow`: the parts of a value that a model itself tells apart, such as queries, keys and values.

A value of a fused layer is divided by what follows: each part goes its own way before its numbers are mixed. Nothing
here knows parameters. Start at `parts_in_flow`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.kinds import (
    FUNCTIONS,
    MOVES,
    PRODUCTS,
    SELECTIONS,
    SUMS,
    operation_name,
)
from mixer_equiv.equivalence.record.graph import Graph, Node, Ref
from mixer_equiv.equivalence.record.torch.evaluation import run_node

MOST_PARTS = 4


def parts_in_flow(graph: Graph, order: Sequence[int], source: int, value: Callable[[Ref], Tensor]) -> list[np.ndarray]:
    """The parts, as sorted flat places in the result of node `source`, into which later nodes divide it.

    `order` are the numbers of the nodes that are run, and `value` gives what does not depend on the source. Empty if
    the whole goes one way, or more than `MOST_PARTS`.
    """
    shape = graph.nodes[source].shapes[0]
    labels = _Labels(math.prod(shape))
    places: dict[int, Any] = {source: torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)}
    if len(graph.nodes[source].shapes) > 1:
        places[source] = (places[source],)

    def known(ref: Ref) -> bool:
        return ref.node in places and (ref.part or 0) < len(graph.nodes[ref.node].shapes) and _has(places, ref)

    for number in order:
        node = graph.nodes[number]
        refs = [ref for ref in dict.fromkeys(node.refs) if known(ref)] if number > source else []
        if not refs:
            continue
        followed = [_pick(places, ref) for ref in refs]
        made = _follow(node, refs, followed, lambda ref: _pick(places, ref) if known(ref) else value(ref), labels)
        if made is None:
            for reached in followed:
                labels.join_all(_numbers(reached))
        else:
            places[number] = made
        if labels.are_one:
            return []
    parts = labels.parts()
    return parts if 1 < len(parts) <= MOST_PARTS else []


def _follow(
    node: Node, refs: list[Ref], followed: list[Tensor], value: Callable[[Ref], Tensor], labels: _Labels
) -> Any:
    """The places in a node's result, None where it mixes them."""
    name = operation_name(node)
    if name in MOVES or (name in SELECTIONS and len(refs) == len(set(node.refs))):
        return run_node(node, value)
    if name in FUNCTIONS or (name in SUMS | PRODUCTS and all(places.shape == node.shapes[0] for places in followed)):
        if len(followed) > 1:
            if name in PRODUCTS:  # of a gate and what it gates, each of which goes on as its own
                return None
            labels.join(_numbers(followed[0]), _numbers(followed[1]))
        return followed[0]
    return None


def _has(places: dict[int, Any], ref: Ref) -> bool:
    held = places[ref.node]
    return not isinstance(held, tuple | list) or (ref.part or 0) < len(held)


def _pick(places: dict[int, Any], ref: Ref) -> Tensor:
    held = places[ref.node]
    result: Tensor = held if ref.part is None else held[ref.part]
    return result


def _numbers(places: Tensor) -> np.ndarray:
    return places.detach().reshape(-1).numpy().astype(np.intp)


class _Labels:
    """Which places belong together."""

    def __init__(self, size: int) -> None:
        self.labels = np.arange(size)
        self.touched = np.zeros(size, bool)

    @property
    def are_one(self) -> bool:
        return bool(self.touched.all()) and self.labels.min() == self.labels.max()

    def join_all(self, places: np.ndarray) -> None:
        """Put all of these places together."""
        self.touched[places] = True
        present = np.zeros(len(self.labels), bool)
        present[self.labels[places]] = True
        self.labels[present[self.labels]] = np.flatnonzero(present)[0]

    def join(self, places: np.ndarray, others: np.ndarray) -> None:
        """Put each place and the other one at the same position together."""
        while True:
            first, second = self.labels[places], self.labels[others]
            if np.array_equal(first, second):
                return
            lower = np.minimum(first, second)
            into = np.arange(len(self.labels))
            np.minimum.at(into, first, lower)
            np.minimum.at(into, second, lower)
            while not np.array_equal(into, into[into]):
                into = into[into]
            self.labels = into[self.labels]

    def parts(self) -> list[np.ndarray]:
        """The places of each part, in the order of their first ones; empty if some place goes nowhere."""
        if not self.touched.all():
            return []
        found, first = np.unique(self.labels, return_index=True)
        return [np.flatnonzero(self.labels == label) for label in found[np.argsort(first)][: MOST_PARTS + 1]]
