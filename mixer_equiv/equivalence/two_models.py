"""`compare_models`: any two models, which parameter of one is which of the other, and where they part.

Start here to follow a comparison: both are recorded, A's parameters are looked for in B, and what was found is held
against other parameters.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixer_equiv.equivalence.correspondence.offers import Offers
from mixer_equiv.equivalence.correspondence.search import SAME, Found, Search, found_by
from mixer_equiv.equivalence.correspondence.sites import kind_of
from mixer_equiv.equivalence.correspondence.table import Correspondence, correspondence_of
from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record.graph import Graph, Node
from mixer_equiv.equivalence.sides.foreign_model import generic
from mixer_equiv.equivalence.sides.recordable import Recordable, as_inputs, recordable

# Seeds of the parameters on which A is recorded, of those of B among which A's are found, and of those that are new.
_OF_A, _OF_B, _ANEW = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that B computes in another way, at one step or at several.

    Attributes:
        kind: What differs, such as "activation".
        expected: What A has.
        found: What B has.
        steps: At how many steps of A.
        alike: How many steps of the kind A has.
        a: The place of the first of them in A.
        b: The place in B; None where B computes it together with others.
    """

    kind: str
    expected: str
    found: str
    steps: int
    alike: int
    a: Place | None
    b: Place | None


@dataclasses.dataclass(frozen=True, eq=False)
class ModelComparison:
    """What is known of two models.

    Attributes:
        a: The name of A.
        b: The name of B.
        is_same: Whether they are one function, with the parameters of `correspondence`.
        differences: What must be changed in A for it to be B's function.
        is_explained: Whether, with these changes, it is.
        correspondence: Which parameters are which, as far as they were found.
        residual: How far the outputs are apart with the changes, relative to B's; None where A did not get there.
        residual_anew: The same with other parameters; None where it was not run.
        stopped_at: The place in A of the step whose parameters were not found.
        output: The path of the output of B that was compared.
        tries: How often a step of A was run to find its parameters.
        seconds: The time that the search took.
    """

    a: str
    b: str
    is_same: bool
    differences: tuple[Difference, ...]
    is_explained: bool
    correspondence: Correspondence
    residual: float | None
    residual_anew: float | None
    stopped_at: Place | None
    output: str
    tries: int
    seconds: float


def compare_models(a: Any, b: Any, inputs: Any, b_inputs: Any = None, *, seed: int = 0) -> ModelComparison:
    """Compare two models of torch, Flax linen or nnx on inputs: an array, a tuple or a dict of arguments.

    `b_inputs` are B's, where they are laid out otherwise: images with channels last. Parameters are drawn from `seed`.
    Raises `MixerEquivError` for a model that cannot be recorded.
    """
    given_a, given_b = as_inputs(inputs), as_inputs(inputs if b_inputs is None else b_inputs)
    sides = recordable(a, given_a), recordable(b, given_b)
    graph_a, graph_b = sides[0].record(generic(seed + _OF_A)), sides[1].record(generic(seed + _OF_B))
    drawn = _drawn(sides[1], seed + _OF_B)
    found, search = found_by(graph_a, graph_b, drawn, _tensors(given_a, graph_a), _tensors(given_b, graph_b))
    table = correspondence_of(found.bindings, graph_a, graph_b)
    anew = None
    if found.residual is not None and not any(change.kind == "unknown" for change in found.changes):
        anew = _residual_anew(search, sides[1], given_a, given_b, seed)
    is_done = anew is not None and anew <= SAME
    return ModelComparison(
        sides[0].name,
        sides[1].name,
        is_done and not found.changes,
        _differences(found, search),
        is_done,
        table,
        found.residual,
        anew,
        None if found.missing is None else graph_a.nodes[found.missing].place,
        found.output,
        found.tries,
        found.seconds,
    )


def _drawn(side: Recordable, seed: int) -> dict[str, Tensor]:
    draw = generic(seed)
    return {name: torch.from_numpy(np.asarray(draw(name, shape))) for name, shape in side.shapes.items()}


def _tensors(given: Mapping[str, Any], graph: Graph) -> dict[str, Tensor]:
    """The arrays of the inputs, floats in float64, by the names that the graph has for them."""
    found: dict[str, Tensor] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{name}[{key!r}]", item)
        elif isinstance(value, tuple | list):
            for i, item in enumerate(value):
                add(f"{name}[{i}]", item)
        elif hasattr(value, "shape"):
            tensor = torch.as_tensor(np.asarray(value))
            found[name] = tensor.double() if tensor.is_floating_point() else tensor

    for name, value in given.items():
        add(name, value)
    return {name: found[name] for name in graph.inputs}


def _residual_anew(
    search: Search, b: Recordable, given_a: Mapping[str, Any], given_b: Mapping[str, Any], seed: int
) -> float | None:
    """How far the outputs are apart on other parameters of B, and the same inputs."""
    graph_b = search.offers.graph
    inputs_a, inputs_b = _tensors(given_a, search.forward.graph), _tensors(given_b, graph_b)
    with torch.no_grad(), np.errstate(all="ignore"):
        offers = Offers(graph_b, _drawn(b, seed + _ANEW), inputs_b)
        return search.residual_on(offers, inputs_a)


def _differences(found: Found, search: Search) -> tuple[Difference, ...]:
    nodes = search.forward.graph.nodes
    counts = Counter(kind_of(nodes[number]) for number in search.forward.order)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for change in found.changes:
        groups.setdefault(change.what, []).append(change.node)
    result = []
    for (kind, expected, theirs), numbers in groups.items():
        alike = sum(counts[key] for key in {kind_of(nodes[number]) for number in numbers})
        places = nodes[numbers[0]].place, _place_in_b(search, numbers[0])
        result.append(Difference(kind, expected, theirs, len(numbers), alike, *places))
    return tuple(result)


def _place_in_b(search: Search, number: int) -> Place | None:
    """The place of the first value of B that A has, with the change, at this node or behind it."""
    made = {number}
    for later in search.forward.order[search.forward.order.index(number) :]:
        node: Node = search.forward.graph.nodes[later]
        if later != number and made.isdisjoint(ref.node for ref in node.refs):
            continue
        made.add(later)
        if later in search.forward.values:
            for array in search.forward.results(later):
                values = search.offers.find(array)
                if values:
                    return search.offers.graph.nodes[values[0].node].place
    return None
