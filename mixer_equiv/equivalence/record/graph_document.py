"""`document_of` and `graph_of`: a graph without its constants as JSON, and back.

A document has the versions of format and packages, the outputs, and each node's operation, shapes, arguments, name and
place. Reading checks every number and name, and derives from other nodes whether a node is data and which parameters
reach it. Start at `document_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixer_equiv.equivalence.place import FindPlace, Place, nowhere
from mixer_equiv.equivalence.record.graph import CONSTANT, INPUT, PARAMETER, Graph, GraphBuilder, Node, Ref, Shape
from mixer_equiv.equivalence.record.graph_json import (
    GraphFileError,
    argument_from_json,
    argument_to_json,
    fields_of,
    list_of,
    object_of,
    shown,
    text,
    whole_number,
)
from mixer_equiv.equivalence.record.graph_operations import OPERATIONS
from mixer_equiv.versions import versions

FORMAT_VERSION = 1

# More than any graph of a model has.
_MAX_NODES = 2**18
_MAX_RESULTS = 2**16  # of a node
_MAX_AXES = 64
_MAX_LENGTH = 2**40  # of an axis
_MAX_LINE = 2**31
_MAX_PLACE_TEXT = 1000
_MAX_REACHING = 2**22  # parameters that reach nodes, over all nodes


def document_of(graph: Graph) -> dict[str, Any]:
    """The document of a graph. Raises `GraphFileError` for arguments that JSON cannot hold."""
    places: dict[tuple[Any, ...], int] = {}
    return {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "nodes": [_node_to_json(node, places) for node in graph.nodes],
        "outputs": {path: argument_to_json(ref) for path, ref in graph.outputs.items()},
        "places": [list(place) for place in places],
    }


def _node_to_json(node: Node, places: dict[tuple[Any, ...], int]) -> dict[str, Any]:
    fields: dict[str, Any] = {"operation": node.operation, "shapes": [list(shape) for shape in node.shapes]}
    if node.operation == CONSTANT:
        return fields
    if node.is_given:
        return {**fields, "name": node.name}
    fields["arguments"] = [argument_to_json(argument) for argument in node.arguments]
    fields["keywords"] = {name: argument_to_json(argument) for name, argument in node.keywords.items()}
    if node.place is not None:
        texts = (_printable(words) for words in (node.place.file, node.place.text, node.place.module))
        fields["place"] = places.setdefault((node.place.line, *texts), len(places))
    return fields


def _printable(words: str) -> str:
    """A path or a line of code without tabs and other control characters, and not too long."""
    return "".join(character if character.isprintable() else " " for character in words)[:_MAX_PLACE_TEXT]


def graph_of(document: Any, constants: Mapping[int, np.ndarray]) -> Graph:
    """The graph of a document of this version, with its constants by the numbers of their nodes.

    Raises `GraphFileError`.
    """
    held = fields_of(document, "the graph", ("format_version", "versions", "nodes", "outputs", "places"))
    places = [_place_from_json(place) for place in list_of(held["places"], "the list of places")]
    nodes = list_of(held["nodes"], "the list of nodes")
    whole_number(len(nodes), "the number of nodes", 0, _MAX_NODES)
    reader = _NodeReader(constants, places)
    for number, node in enumerate(nodes):
        try:
            reader.add(object_of(node, "it"))
        except GraphFileError as fault:
            operation = node.get("operation") if isinstance(node, dict) else None
            named = f" ({operation})" if isinstance(operation, str) and operation in OPERATIONS else ""
            raise GraphFileError(f"node {number}{named}: {fault}") from None
    unused = constants.keys() - reader.constants_used
    if unused:
        raise GraphFileError(f"it has {len(unused)} arrays that are no constants of its nodes")
    outputs = object_of(held["outputs"], "the outputs")
    return reader.builder.graph(
        {text(path, "the path of an output"): reader.output(ref) for path, ref in outputs.items()}
    )


def check_version(document: Mapping[str, Any]) -> None:
    """Raise `GraphFileError` for a document of another version of the format."""
    made_by = object_of(document.get("versions"), "the object of versions")
    for name, version in made_by.items():
        text(name, "the name of a package")
        text(version, "the version of a package")
    version = document.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise GraphFileError(
            f"its format version is {shown(version)}, not {FORMAT_VERSION}, which alone this mixer_equiv reads; it was "
            f"written by mixer_equiv {made_by.get('mixer_equiv', 'of an unknown version')}"
        )


def _place_from_json(value: Any) -> FindPlace:
    line, file, words, module = list_of(value, "a place", 4)
    whole_number(line, "the line of a place", 0, _MAX_LINE)
    made = Place(text(file, "the file of a place"), line, text(words, "a line of code"), text(module, "a module"))
    return lambda: made


class _NodeReader:
    """Adds nodes one by one, each of which may take results of those before it."""

    def __init__(self, constants: Mapping[int, np.ndarray], places: Sequence[FindPlace]) -> None:
        self.builder = GraphBuilder()
        self.constants_used: set[int] = set()
        self._constants, self._places, self._reaching = constants, places, 0

    def add(self, node: dict[str, Any]) -> None:
        operation = node.get("operation")
        shapes = tuple(_shape_from_json(shape) for shape in list_of(node.get("shapes"), "the list of shapes"))
        whole_number(len(shapes), "the number of its results", 0, _MAX_RESULTS)
        if operation in (INPUT, PARAMETER, CONSTANT):
            self._give(operation, shapes, node)
            return
        if not isinstance(operation, str) or operation not in OPERATIONS:
            raise GraphFileError(f"its operation is {shown(operation)}, which is none of those that a graph can have")
        fields_of(node, "it", ("operation", "shapes", "arguments", "keywords"), ("place",))
        arguments = [argument_from_json(item, self._ref) for item in list_of(node["arguments"], "the arguments")]
        keywords = {
            _keyword(name): argument_from_json(item, self._ref)
            for name, item in object_of(node["keywords"], "the keywords").items()
        }
        find_place: FindPlace = nowhere
        if "place" in node:
            find_place = self._places[whole_number(node["place"], "its place", 0, len(self._places) - 1)]
        self.builder.call(operation, shapes, tuple(arguments), keywords, find_place)

    def _give(self, operation: str, shapes: tuple[Shape, ...], node: dict[str, Any]) -> None:
        if len(shapes) != 1:
            raise GraphFileError(f"the {operation} has {len(shapes)} shapes, not one")
        if operation == CONSTANT:
            fields_of(node, "it", ("operation", "shapes"))
            self._give_constant(shapes[0])
            return
        fields_of(node, "it", ("operation", "shapes", "name"))
        name = text(node["name"], f"the name of the {operation}")
        if name in (self.builder.inputs if operation == INPUT else self.builder.parameters):
            raise GraphFileError(f"a second {operation} has the name {name!r}")
        self.builder.give(operation, shapes[0], name=name)

    def _give_constant(self, shape: Shape) -> None:
        number = len(self.builder.nodes)
        value = self._constants.get(number)
        if value is None:
            raise GraphFileError("the constant has no array in the file")
        if value.shape != shape:
            raise GraphFileError(f"the constant is said to be of shape {shape}, and its array is of {value.shape}")
        self.constants_used.add(number)
        self.builder.give(CONSTANT, shape, value=value)

    def output(self, value: Any) -> Ref:
        """The result that is an output."""
        made = argument_from_json(value, self._ref)
        if not isinstance(made, Ref):
            raise GraphFileError(f"an output is {shown(made)}, not a result of a node")
        return made

    def _ref(self, value: Any) -> Ref:
        number, part = list_of(value, "a result", 2)
        before = len(self.builder.nodes)
        if type(number) is not int or not 0 <= number < before:
            raise GraphFileError(f"a result is of node {shown(number)}, not of one of the {before} before it")
        source = self.builder.nodes[number]
        self._reaching += len(source.parameters)
        whole_number(self._reaching, "the number of parameters that reach nodes", 0, _MAX_REACHING)
        if part is None and (source.is_given or len(source.shapes) == 1):
            return Ref(number)
        if source.is_given:
            raise GraphFileError(f"a result is part {shown(part)} of node {number}, which has no parts")
        return Ref(number, whole_number(part, f"the part of node {number}", 0, len(source.shapes) - 1))


def _shape_from_json(value: Any) -> Shape:
    axes = list_of(value, "a shape")
    whole_number(len(axes), "the number of axes", 0, _MAX_AXES)
    return tuple(whole_number(length, "the length of an axis", 0, _MAX_LENGTH) for length in axes)


def _keyword(name: str) -> str:
    if not name.isidentifier() or not name.isprintable():
        raise GraphFileError(f"an argument has the name {shown(name)}, not a word")
    return name
