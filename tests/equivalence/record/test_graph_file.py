"""A graph in a file is read as it was written, and a file that somebody else made is refused in one sentence."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mixer_equiv import CheckpointError
from mixer_equiv.equivalence.place import Place
from mixer_equiv.equivalence.record import graph_document, graph_file
from mixer_equiv.equivalence.record.graph import CONSTANT, INPUT, PARAMETER, Graph, GraphBuilder, Ref, Setting
from mixer_equiv.equivalence.record.graph_file import METADATA_KEY, read_graph, write_graph
from mixer_equiv.errors import NotFollowedError
from tests.support.graph_files import assert_same, read_again
from tests.support.scripts import BLOCKED, printed

RNG = np.random.default_rng(0)
CONSTANTS = {
    "floats": RNG.standard_normal((2, 3)),
    "a number": np.array(-0.0),
    "no number": np.zeros((0, 3), np.float32),
    "not finite": np.array([math.nan, math.inf, -math.inf]),
    "half": np.ones(2, np.float16),
    "integers": np.arange(-3, 3),
    "unsigned": np.arange(3, dtype=np.uint16),
    "mask": np.array([[True, False]]),
    "complex": RNG.standard_normal(3) + 1j * RNG.standard_normal(3),
    "a complex number": np.array(1 - 2j, np.complex64),
    "columns first": np.asfortranarray(RNG.standard_normal((2, 3, 4))),
    "other order": RNG.standard_normal((4, 2, 3)).transpose(1, 2, 0),
    "complex columns": (RNG.standard_normal((3, 2)) * 1j).T,
}
ARGUMENTS = {
    "none": None,
    "booleans": [True, False],
    "integers": (0, -(2**63), 2**63 - 1),
    "floats": [0.1, -0.0, 1e300, 5e-324, 1.0],
    "not finite": (math.inf, -math.inf, math.nan),
    "complex": complex(math.inf, -0.0),
    "text": "tanh",
    "dtype": Setting("dtype", "float64"),
    "device": Setting("device", ""),
    "memory format": Setting("memory_format", "channels_last"),
    "layout": Setting("layout", "strided"),
    "nested": [([1, (2.5,)], {"a": (), "ref": None}), {}],
    "results": [Ref(0), None, Ref(1)],
}


def a_graph(argument: Any = None, constant: Any = CONSTANTS["floats"], operation: str = "aten.add.Tensor") -> Graph:
    builder = GraphBuilder()
    x = builder.give(INPUT, (2, 3), name="0")
    w = builder.give(PARAMETER, (3,), name="blocks.0.weight")
    c = builder.give(CONSTANT, constant.shape, value=constant)
    place = Place("model.py", 41, "y = x + w", "blocks.0")
    halves = builder.call("aten.split.Tensor", ((1, 3), (1, 3)), (x, 1, 0), {}, lambda: place)
    total = builder.call(operation, ((1, 3),), (Ref(halves, 1), w), {"alpha": argument}, lambda: place)
    other = builder.call("lax.mul", ((2, 3),), (c, w))
    return builder.graph({"['logits']": Ref(total), "['tokens'][0]": Ref(halves, 0), "": Ref(other)})


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_read_as_they_were(name: str) -> None:
    graph = a_graph(constant=CONSTANTS[name])
    read = read_again(graph)
    assert_same(graph, read)
    value = read.nodes[2].value
    assert value is not None
    assert value.flags.writeable
    assert value.strides == CONSTANTS[name].strides


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_read_as_they_were(name: str) -> None:
    graph = a_graph(ARGUMENTS[name])
    assert_same(graph, read_again(graph))


@pytest.mark.parametrize("lost", ["keywords", "arguments", "place"])
def test_what_is_lost_on_the_way_is_noticed(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to_json = graph_document._node_to_json

    def losing(node: Any, places: Any) -> dict[str, Any]:
        made = to_json(node, places)
        if lost == "place":
            made.pop("place", None)
        elif lost in made:
            made[lost] = type(made[lost])()
        return made

    graph = a_graph(1.5)
    monkeypatch.setattr(graph_document, "_node_to_json", losing)
    with pytest.raises(AssertionError):
        assert_same(graph, read_again(graph))


def test_a_constant_that_is_changed_on_the_way_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    to_stored = graph_file._to_stored
    monkeypatch.setattr(graph_file, "_to_stored", lambda value: to_stored(value.astype(np.float32).astype(value.dtype)))
    graph = a_graph()
    with pytest.raises(AssertionError):
        assert_same(graph, read_again(graph))


def test_a_file_has_versions_and_no_path_of_this_machine(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    document = document_in(path)
    assert document["versions"]["numpy"] == np.__version__
    assert document["places"] == [[41, "model.py", "y = x + w", "blocks.0"]]
    contents = path.read_bytes()
    assert not [folder for folder in (tmp_path, Path.home(), Path.cwd()) if str(folder).encode() in contents]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"a\.program exists; pass force=True"):
        write_graph(a_graph(2), path)

    def failing(arrays: Any, temporary: Path, metadata: Any) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(graph_file, "save_file", failing)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            write_graph(a_graph(2), path, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    write_graph(a_graph(2), path, force=True)
    assert read_graph(path).nodes[4].keywords == {"alpha": 2}


def test_neither_framework_is_needed(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    script = """
from mixer_equiv.equivalence.record.graph_file import read_graph, write_graph
graph = read_graph(sys.argv[1])
write_graph(graph, sys.argv[1] + ".again")
print(json.dumps([node.operation for node in graph.nodes]))
"""
    assert printed(BLOCKED + script, path)[3:] == ["aten.split.Tensor", "aten.add.Tensor", "lax.mul"]
    assert_same(read_graph(path), read_graph(f"{path}.again"))


# What is not written


def test_operations_outside_of_the_table_are_named_with_their_places(tmp_path: Path) -> None:
    graph = a_graph(operation="aten.rand_like.default")
    expected = (
        r"the graph cannot be written: aten\.rand_like\.default at model\.py:41 in blocks\.0 is none of the operations "
        r"that a file can have; verify a writing without it, or both models in one environment"
    )
    with pytest.raises(NotFollowedError, match=f"^{expected}$"):
        write_graph(graph, tmp_path / "a.program")
    assert not list(tmp_path.iterdir())


class Jaxpr:
    """What no file can hold."""


UNWRITABLE = {
    "a jaxpr": (Jaxpr(), "an argument is a Jaxpr"),
    "a slice": (slice(1, 2), "an argument is a slice"),
    "an array": ([np.zeros(3)], "an argument is a ndarray"),
    "a set": ({1}, "an argument is a set"),
    "a dict by numbers": ({1: 2}, "a dict with a int for a name"),
    "an unknown dtype": (Setting("dtype", "float8_e4m3fn"), "a dtype is 'float8_e4m3fn', not"),
    "a sparse layout": (Setting("layout", "sparse_coo"), "a layout is 'sparse_coo', not 'strided'"),
    "a huge number": (2**70, "an integer of more than 64 bits, not a whole number"),
    "control characters": ("a\x1b[31m", r"'a\\x1b\[31m', not at most 2000 printable"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_arguments_that_a_file_cannot_hold_are_named(name: str, tmp_path: Path) -> None:
    argument, expected = UNWRITABLE[name]
    with pytest.raises(NotFollowedError, match=rf"^the graph cannot be written: .*{expected}.*; verify a writing"):
        write_graph(a_graph(argument), tmp_path / "a.program")
    assert not list(tmp_path.iterdir())


def test_a_constant_of_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFollowedError, match="a constant is of dtype object, which a file cannot hold"):
        write_graph(a_graph(constant=np.array([None])), tmp_path / "a.program")


# What is not read


def document_in(path: Path) -> Any:
    with safe_open(path, "numpy") as tensors:
        return json.loads(tensors.metadata()[METADATA_KEY])


def rewrite(path: Path, change: Callable[[Any], Any], arrays: Any = None) -> None:
    """Change the document in a file; `change` may give another one, or text that is none."""
    document = document_in(path)
    with safe_open(path, "numpy") as tensors:
        arrays = arrays if arrays is not None else {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    changed = change(document)
    document = document if changed is None else changed
    text = document if isinstance(document, str) else json.dumps(document)
    save_file(arrays, path, metadata={METADATA_KEY: text})


def node(number: int, **fields: Any) -> Callable[[Any], None]:
    return lambda document: document["nodes"][number].update(fields)


def without(number: int, field: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        del document["nodes"][number][field]

    return change


def argument(value: Any) -> Callable[[Any], None]:
    return node(4, keywords={"alpha": value})


def deep(levels: int) -> Any:
    return [] if levels == 0 else [deep(levels - 1)]


def top(**fields: Any) -> Callable[[Any], None]:
    return lambda document: document.update(fields)


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a forward reference": (
        argument({"ref": [5, None]}),
        "node 4 .*: a result is of node 5, not of one of the 4 before",
    ),
    "a reference to itself": (argument({"ref": [4, None]}), "a result is of node 4, not"),
    "a reference to before the first": (argument({"ref": [-1, None]}), "a result is of node -1, not"),
    "a reference by a float": (argument({"ref": [1.0, None]}), r"a result is of node 1\.0, not"),
    "a reference by true": (argument({"ref": [True, None]}), "a result is of node True, not"),
    "a part beyond the last": (argument({"ref": [3, 2]}), "the part of node 3 is 2, not a whole number from 0 to 1"),
    "a part before the first": (argument({"ref": [3, -1]}), "the part of node 3 is -1, not"),
    "no part of several": (argument({"ref": [3, None]}), "the part of node 3 is None, not"),
    "a part of an input": (argument({"ref": [0, 0]}), "part 0 of node 0, which has no parts"),
    "a reference of three": (argument({"ref": [0, None, 1]}), "a result is a list of 3, not a list of 2"),
    "an unknown operation": (
        node(4, operation="aten.frobnicate.default"),
        "its operation is 'aten.frobnicate.default'",
    ),
    "an operation of Python": (node(4, operation="os.system"), "its operation is 'os.system', which is none of those"),
    "an operation that reads files": (
        node(4, operation="aten.from_file.default"),
        "'aten.from_file.default', which is",
    ),
    "a primitive without a rule": (node(4, operation="lax.custom_call"), "its operation is 'lax.custom_call'"),
    "an operation that is a list": (node(4, operation=["aten.add.Tensor"]), "its operation is a list of 1"),
    "no operation": (without(4, "operation"), "node 4: its operation is None"),
    "an unknown dtype": (argument({"dtype": "compile"}), r"node 4 \(aten\.add\.Tensor\): a dtype is 'compile', not"),
    "an attribute of torch": (argument({"dtype": "load"}), "a dtype is 'load', not"),
    "an unknown device": (argument({"device": "cuda:0"}), "a device is 'cuda:0', not ''"),
    "a setting that is a list": (argument({"layout": ["strided"]}), "a layout is a list of 1, not"),
    "an unknown kind": (argument({"class": "os.system"}), "the kind of an argument is 'class', not"),
    "two kinds": (argument({"float": "nan", "tuple": []}), "an object of 2, not an object of one field"),
    "no kind": (argument({}), "an argument is an object of 0, not"),
    "an unknown number": (argument({"float": "1e5"}), "a number that is not finite is '1e5', not 'inf' or"),
    "a complex number of words": (argument({"complex": ["1", 2.0]}), "a complex number is a list of 2, not two floats"),
    "a tuple that is none": (argument({"tuple": 3}), "a tuple is 3, not a list"),
    "a dict that is none": (argument({"dict": [1]}), "a dict is a list of 1, not an object"),
    "deep nesting": (argument(deep(40)), "an argument is nested more than 16 deep"),
    "endless nesting": (lambda d: "[" * 200_000, "its JSON is nested too deep"),
    "a huge integer": (argument(2**64), "an argument is an integer of more than 64 bits, not a whole number"),
    "an integer of many digits": (lambda d: '{"format_version": 1' + "0" * 5000 + "}", "its JSON cannot be read"),
    "a number beyond floats": (
        lambda d: json.dumps(d).replace('{"alpha": null}', '{"alpha": 1e999}'),
        "a number too large for a float",
    ),
    "a literal nan": (lambda d: json.dumps({**d, "format_version": math.nan}), "it has the number NaN"),
    "a field twice": (lambda d: '{"nodes": [], "nodes": []}', "an object in it has a field twice"),
    "no JSON": (lambda d: "import os", "its JSON cannot be read"),
    "another value than an object": (lambda d: "[]", "the graph is a list of 0, not an object"),
    "a huge shape": (node(4, shapes=[[2**50, 3]]), "the length of an axis is 1125899906842624, not a whole number"),
    "a negative shape": (node(4, shapes=[[-1, 3]]), "the length of an axis is -1, not"),
    "a shape of many axes": (node(4, shapes=[[1] * 65]), "the number of axes is 65, not a whole number from 0 to 64"),
    "a shape that is a number": (node(4, shapes=[3]), "a shape is 3, not a list"),
    "shapes of true": (node(4, shapes=[[True]]), "the length of an axis is True, not"),
    "no shapes": (node(4, shapes=None), "the list of shapes is None, not a list"),
    "many results": (node(4, shapes=[[]] * 70_000), "the number of its results is 70000, not"),
    "an input of two shapes": (node(0, shapes=[[2, 3], [2, 3]]), "the input has 2 shapes, not one"),
    "a node that is a number": (lambda d: d["nodes"].__setitem__(4, 5), "node 4: it is 5, not an object"),
    "an unknown field": (node(4, code="print(1)"), "it has the unknown field 'code'"),
    "no arguments": (without(4, "arguments"), "it has no field 'arguments'"),
    "arguments that are text": (node(4, arguments="x"), "the arguments is 'x', not a list"),
    "keywords that are a list": (node(4, keywords=[]), "the keywords is a list of 0, not an object"),
    "a keyword that is no word": (node(4, keywords={"a b": 1}), "an argument has the name 'a b', not a word"),
    "control characters in a name": (
        node(1, name="w\x1b]0;x\x07"),
        r"the name of the parameter is 'w\\x1b\]0;x\\x07', not",
    ),
    "letters from right to left": (node(1, name="w\u202e"), r"the name of the parameter is 'w\\u202e', not"),
    "a long name": (node(1, name="w" * 5000), "the name of the parameter is 'w"),
    "a name that is a number": (node(1, name=3), "the name of the parameter is 3, not"),
    "control characters in a path": (
        top(outputs={"a\nb": {"ref": [0, None]}}),
        r"the path of an output is 'a\\nb', not",
    ),
    "an output that is no result": (top(outputs={"": 3}), "an output is 3, not a result of a node"),
    "an output beyond the last": (top(outputs={"": {"ref": [6, None]}}), "a result is of node 6, not of one of the 6"),
    "a place beyond the last": (node(4, place=7), "its place is 7, not a whole number from 0 to 0"),
    "a place of three": (top(places=[[1, "a", "b"]]), "a place is a list of 3, not a list of 4"),
    "control characters in a place": (top(places=[[1, "a\x00", "", ""]]), r"the file of a place is 'a\\x00', not"),
    "a line before the first": (top(places=[[-1, "a", "", ""]]), "the line of a place is -1, not"),
    "another version": (top(format_version=2, nodes=None), r"its format version is 2, not 1, .* by mixer_equiv 0\."),
    "a version that is text": (top(format_version="1"), "its format version is '1', not 1"),
    "no versions": (top(versions=None), "the object of versions is None, not an object"),
    "a constant without an array": (node(0, operation=CONSTANT, name=None), "it has the unknown field 'name'"),
    "an array without a constant": (
        node(2, operation=PARAMETER, name="p"),
        "1 arrays that are no constants of its nodes",
    ),
    "a constant of another shape": (
        node(2, shapes=[[3, 2]]),
        r"said to be of shape \(3, 2\), and its array is of \(2, 3\)",
    ),
    "constants that are not listed": (top(constants={}), "it lists 0 constants, and has 1 arrays, not the same"),
    "no list of constants": (lambda d: d.pop("constants") and None, "the list of constants is None, not an object"),
    "a constant of another dtype": (
        top(constants={"2": {"dtype": "int64", "order": [0, 1]}}),
        "a constant is said to be of int64, and its array is of float64",
    ),
    "a constant of an unknown dtype": (
        top(constants={"2": {"dtype": "O", "order": [0, 1]}}),
        "dtype of a constant is 'O'",
    ),
    "complex parts that are none": (
        top(constants={"2": {"dtype": "complex128", "order": [0]}}),
        r"a complex constant has an array of shape \(2, 3\)",
    ),
    "an axis twice": (
        top(constants={"2": {"dtype": "float64", "order": [0, 0]}}),
        r"'\[0, 0\]', and it has each axis once",
    ),
    "axes that are none": (top(constants={"2": {"dtype": "float64", "order": [0, None]}}), "it has each axis once"),
    "too few axes": (top(constants={"2": {"dtype": "float64", "order": [0]}}), "a list of 1, not a list of 2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_somebody_else_made_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    change, expected = HOSTILE[name]
    rewrite(path, change)
    loaded = set(sys.modules)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_graph(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as a graph: ")
    assert message.endswith("; record the model again")
    assert message.isprintable()
    assert len(message) < 500
    assert set(sys.modules) == loaded


def test_parameters_that_reach_ever_more_nodes_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")

    def change(document: Any) -> None:
        parameters = [{"operation": PARAMETER, "shapes": [[]], "name": f"p{number}"} for number in range(3000)]
        sums: list[Any] = [
            {"operation": "aten.add.Tensor", "shapes": [[]], "keywords": {}, "arguments": [{"ref": [number, None]}] * 2}
            for number in range(2999, 5999)
        ]
        sums[0]["arguments"] = [[{"ref": [number, None]} for number in range(3000)]]
        document.update(nodes=[*parameters, *sums], outputs={}, constants={})

    rewrite(path, change, {})
    with pytest.raises(CheckpointError, match="the number of parameters that reach nodes is 41"):
        read_graph(path)


def test_an_array_of_a_dtype_that_no_constant_has_is_refused(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    contents = path.read_bytes()
    path.write_bytes(contents.replace(b'"dtype":"F64","shape":[2,3]', b'"dtype":"BF16","shape":[24]'))
    assert path.read_bytes() != contents
    with pytest.raises(CheckpointError, match=r"the dtype of the array '2' is 'BF16', not 'BOOL' or 'I8'"):
        read_graph(path)


def test_two_inputs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    rewrite(path, node(1, operation=INPUT, name="0"))
    with pytest.raises(CheckpointError, match="node 1: a second input has the name '0'"):
        read_graph(path)


ARRAYS: dict[str, tuple[Any, str]] = {
    "by a name": ({"weights": np.zeros(2)}, "a constant has the name 'weights', not the number of a node"),
    "by a number in other digits": ({"\u0662": np.zeros(2)}, "a constant has the name '\u0662', not the number"),
    "by a negative number": ({"-1": np.zeros(2)}, "a constant has the name '-1', not the number"),
    "of a node that is none": ({"2": CONSTANTS["floats"], "77": np.zeros(2)}, "1 arrays that are no constants"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_constants_are_refused(name: str, tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    arrays, expected = ARRAYS[name]
    forms = {name: {"dtype": str(array.dtype), "order": list(range(array.ndim))} for name, array in arrays.items()}
    rewrite(path, top(constants=forms), arrays)
    with pytest.raises(CheckpointError, match=expected):
        read_graph(path)


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    whole = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cannot be read as a graph: it is damaged, or of another format"):
            read_graph(path)


def test_a_byte_that_is_changed_anywhere_runs_no_code(tmp_path: Path) -> None:
    path = write_graph(a_graph(), tmp_path / "a.program")
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        try:
            read_graph(path)
        except CheckpointError:
            refused += 1
    assert refused > len(whole) // 14


def test_a_header_that_tells_of_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.program"
    header = json.dumps({"2": {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(CheckpointError, match="it is damaged, or of another format"):
        read_graph(path)


def test_what_is_no_file_of_a_graph_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.program is missing; give the file of a graph"):
        read_graph(tmp_path / "none.program")
    with pytest.raises(CheckpointError, match="is no file; give the file of a graph"):
        read_graph(tmp_path)
    save_file({"w": np.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"it has no 'mixer_equiv\.graph' among its metadata"):
        read_graph(tmp_path / "weights.safetensors")
