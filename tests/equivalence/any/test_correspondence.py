"""A's parameters are found in B by value: those that the true mapping states, in both directions, and what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.correspondence.search import Found, found_by
from mixer_equiv.equivalence.correspondence.table import Correspondence, correspondence_of
from mixer_equiv.equivalence.faults.graph_mutants import mutants_of
from mixer_equiv.equivalence.record import jax_graph
from mixer_equiv.equivalence.record.graph import Graph
from mixer_equiv.equivalence.record.torch import run
from mixer_equiv.equivalence.record.torch.evaluation import evaluate
from mixer_equiv.equivalence.sides.foreign_model import generic
from mixer_equiv.equivalence.two_models import compare_models
from mixer_equiv.errors import ConversionError
from tests.support.ported import PAIRS, VIT, Ported, Side

MOST = 1e-12

# The pair, and whether its second side is the reference. A sum of embeddings in another order is not found yet, and a
# BatchNorm that is folded into its convolution takes long.
CASES = [
    (f"{family.name}: {a} - {b}{', reversed' if flip else ''}", family, a, b, flip)
    for family, a, b in PAIRS
    for flip in (False, True)
    if b != "folded" and (family.name, flip) != ("BERT", True)
]


@dataclasses.dataclass(frozen=True)
class Recorded:
    graph: Graph
    parameters: dict[str, Tensor]
    inputs: dict[str, Tensor]


def record(side: Side, inputs: Mapping[str, np.ndarray], seed: int) -> Recorded:
    draw, given = generic(seed), side.arguments(inputs)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}
    if side.call is not None:
        graph = jax_graph.record_graph(side.call, side.shapes, given, draw)
    else:
        held = [*side.model.named_parameters(), *side.model.named_buffers()]
        graph = run.record_graph(side.model, tensors, draw, names={n: t for n, t in held if n in side.shapes})
    drawn = {name: torch.from_numpy(np.asarray(draw(name, shape))) for name, shape in side.shapes.items()}
    return Recorded(graph, drawn, {name: tensor for name, tensor in tensors.items() if name in graph.inputs})


def searched(a: Recorded, b: Recorded, graph: Graph | None = None) -> tuple[Found, Correspondence]:
    other = graph or b.graph
    found, _ = found_by(a.graph, other, b.parameters, a.inputs, b.inputs, limit=20_000)
    return found, correspondence_of(found.bindings, a.graph, other)


@pytest.mark.parametrize(("family", "a", "b", "flip"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_true_mapping_is_found(family: object, a: str, b: str, flip: bool) -> None:
    pair: Ported = family.pair(a, b)  # type: ignore[attr-defined]
    inputs = pair.draw_inputs(3)
    sides = (pair.b, pair.a) if flip else (pair.a, pair.b)
    one, other = record(sides[0], inputs, 1), record(sides[1], inputs, 2)
    found, table = searched(one, other)
    assert found.residual is not None
    assert found.residual <= MOST
    assert found.changes == ()
    theirs = {name: tensor.numpy() for name, tensor in other.parameters.items()}
    true = (pair.mapping if flip else pair.inverse)(theirs)
    made = table.to_a({name: theirs[name] for name in table.b_shapes})
    assert made.keys() == true.keys() & one.graph.parameters.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(array, true[name], err_msg=name)
    returned = table.to_b(made)
    assert all(np.array_equal(array, theirs[name]) for name, array in returned.items())


@pytest.fixture(scope="module")
def vit() -> tuple[Recorded, Recorded]:
    pair = VIT.pair("timm", "linen", dataclasses.replace(VIT.small, depth=11))
    inputs = pair.draw_inputs(3)
    return record(pair.a, inputs, 1), record(pair.b, inputs, 2)


def test_the_table_has_one_row_for_all_blocks(vit: tuple[Recorded, Recorded]) -> None:
    _, table = searched(*vit)
    rows = [line.split() for line in str(table).splitlines()]
    assert ["blocks.{i}.norm1.weight", "Transformer/encoderblock_{i}/LayerNorm_0/scale"] in rows
    query = next(row for row in rows if row[1].endswith("query/kernel"))
    assert query[0] == "blocks.{i}.attn.qkv.weight[0:24]" or query[0].startswith("blocks.{i}.attn.qkv.weight[0:")
    assert query[2:] == ["(a", "b)", "c", "->", "c", "a", "b"]
    assert len(rows) < 40


def test_weights_are_ported_strictly(vit: tuple[Recorded, Recorded]) -> None:
    _, table = searched(*vit)
    weights = {name: np.ones(shape, np.float32) for name, shape in table.a_shapes.items()}
    lacking = {name: array for name, array in weights.items() if name != "head.bias"}
    with pytest.raises(ConversionError, match=r"lacks head\.bias"):
        table.to_b(lacking)
    with pytest.raises(ConversionError, match=r"has head\.bias of shape \(1,\), expected"):
        table.to_b({**weights, "head.bias": np.ones(1)})
    with pytest.raises(ConversionError, match="has extra, which is none of its parameters"):
        table.to_b({**weights, "extra": np.ones(1)})


# One mutant of each kind, on the model that is compared with itself.
@pytest.fixture(scope="module")
def mutants(vit: tuple[Recorded, Recorded]) -> list[tuple[str, str, int, Graph, float]]:
    side = vit[0]
    (wanted,) = evaluate(side.graph, side.parameters, side.inputs).values()
    found = []
    for mutant in mutants_of(side.graph):
        (made,) = evaluate(mutant.graph, side.parameters, side.inputs).values()
        apart = float((made - wanted).norm() / wanted.norm())
        found.append((mutant.kind, mutant.what, mutant.node, mutant.graph, apart))
    return found


@pytest.mark.parametrize("kind", ["number", "activation"])
def test_a_planted_fault_is_found_at_its_step(
    kind: str, vit: tuple[Recorded, Recorded], mutants: list[tuple[str, str, int, Graph, float]]
) -> None:
    side = vit[0]
    every = [mutant for mutant in mutants if mutant[0] == kind and mutant[4] > 1e-9]
    for _, what, node, graph, _ in every[len(every) // 3 :: max(1, len(every) // 2)][:2]:
        own = Recorded(graph, side.parameters, side.inputs)
        found, _ = searched(side, own, graph)
        assert found.residual is not None, what
        assert node in [change.node for change in found.changes], what


class Mlp(nn.Module):
    def __init__(self, act: nn.Module, *, norm: bool = True, bias: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, eps=1e-6) if norm else nn.Identity()
        self.first, self.act, self.last = nn.Linear(6, 10), act, nn.Linear(10, 5, bias=bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.act(self.first(self.norm(x) * self.scale)))
        return made


class OtherNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(6, eps=1e-5), nn.Linear(6, 10), nn.GELU("tanh"), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.body(x)}


def test_differences_are_named_with_their_places() -> None:
    compared = compare_models(Mlp(nn.GELU()), OtherNames(), torch.randn(4, 6))
    assert not compared.is_same
    assert compared.is_explained
    assert compared.residual_anew is not None
    assert compared.residual_anew <= MOST
    told = {(d.kind, d.expected, d.found) for d in compared.differences}
    assert told == {("activation", "erf GELU", "tanh GELU"), ("eps", "1e-06", "1e-05")}
    assert all(d.a and d.a.file.endswith("test_correspondence.py") for d in compared.differences)
    assert compared.output == "['logits']"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Mlp(nn.ReLU(), scale=0.5), ("activation", "erf GELU", "ReLU")),
        (Mlp(nn.Identity(), scale=0.5), ("activation", "erf GELU", "no activation")),
        (Mlp(nn.GELU(), scale=0.7), ("number", "0.5", "0.7")),
    ],
    ids=["ReLU", "no activation", "scale"],
)
def test_one_difference_is_named(other: nn.Module, told: tuple[str, str, str]) -> None:
    compared = compare_models(Mlp(nn.GELU(), scale=0.5), other, torch.randn(4, 6))
    assert compared.is_explained
    assert [(d.kind, d.expected, d.found) for d in compared.differences] == [told]


def test_a_bias_that_one_side_lacks_is_zero_in_the_other() -> None:
    compared = compare_models(Mlp(nn.GELU()), Mlp(nn.GELU(), bias=False), torch.randn(4, 6))
    assert compared.is_same
    assert ["last.bias", "0"] in [line.split() for line in str(compared.correspondence).splitlines()]
    weights = {name: np.ones(shape) for name, shape in compared.correspondence.a_shapes.items()}
    with pytest.raises(ConversionError, match=r"B has nothing for last\.bias, which is not 0 throughout"):
        compared.correspondence.to_b(weights)


def test_models_of_other_structure_are_not_the_same() -> None:
    compared = compare_models(
        Mlp(nn.GELU()), nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5)), torch.randn(4, 6)
    )
    assert not compared.is_same
    assert not compared.is_explained
