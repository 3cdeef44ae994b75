"""A graph that was written to a file and read again, and whether two graphs are the same."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixer_equiv.equivalence.record.graph import Graph, Node
from mixer_equiv.equivalence.record.graph_file import read_graph, write_graph


def read_again(graph: Graph) -> Graph:
    """The graph after its way through a file."""
    with tempfile.TemporaryDirectory() as folder:
        return read_graph(write_graph(graph, Path(folder) / "a.program"))


def assert_same(graph: Graph, other: Graph) -> None:
    """Assert that two graphs agree in all that they hold, constants bit by bit."""
    for field in ("inputs", "parameters", "outputs"):
        assert getattr(graph, field) == getattr(other, field)
        assert list(getattr(graph, field)) == list(getattr(other, field))
    assert len(graph.nodes) == len(other.nodes)
    for node, read in zip(graph.nodes, other.nodes, strict=True):
        assert_same_node(node, read)


def assert_same_node(node: Node, other: Node) -> None:
    for field in ("operation", "shapes", "name", "is_data", "parameters", "place"):
        assert getattr(node, field) == getattr(other, field)
    # Their texts, because 1, 1.0 and True are equal, nan is not, and -0.0 is 0.0.
    assert repr((node.arguments, dict(node.keywords))) == repr((other.arguments, dict(other.keywords)))
    assert (node.value is None) == (other.value is None)
    if node.value is not None and other.value is not None:
        assert (node.value.dtype, node.value.shape) == (other.value.dtype, other.value.shape)
        assert node.value.tobytes() == other.value.tobytes()


def assert_same_bits(outputs: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """Assert that two evaluations gave the same outputs, bit by bit."""
    assert outputs.keys() == others.keys()
    for path, output in outputs.items():
        assert output.dtype is others[path].dtype
        assert output.contiguous().numpy().tobytes() == others[path].contiguous().numpy().tobytes(), path
