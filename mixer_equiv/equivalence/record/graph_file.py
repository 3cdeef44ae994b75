"""`write_graph` and `read_graph`: a `Graph` in one file, so that a model recorded here can be compared elsewhere.

The file is one of safetensors. Its tensors are the constants of the graph, by the numbers of their nodes; its metadata
have everything else as JSON, under `METADATA_KEY`. Nothing in a file is executed or imported on reading: operations,
dtypes and other settings are names of closed tables, and every number is checked. A graph is written only if what is
written can be read. No framework is needed. `graph_document` has the JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mixer_equiv.atomic import replacement
from mixer_equiv.equivalence.record.graph import Graph
from mixer_equiv.equivalence.record.graph_document import check_version, document_of, graph_of
from mixer_equiv.equivalence.record.graph_json import (
    GraphFileError,
    argument_to_json,
    fields_of,
    list_of,
    object_of,
    one_of,
    shown,
)
from mixer_equiv.equivalence.record.graph_operations import OPERATIONS
from mixer_equiv.errors import MAX_LISTED, CheckpointError, NotFollowedError, summarize

METADATA_KEY = "mixer_equiv.graph"

# Dtypes of constants by safetensors' names.
_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}

# Complex constants are stored as pairs of floats along a last axis.
_PARTS = {"complex64": "float32", "complex128": "float64"}
_KNOWN_DTYPES = (*_DTYPES.values(), *_PARTS)

# Some 100 times as many as the graph of a ViT has. safetensors allows a header of 100 MB.
_MAX_CHARACTERS = 2**25


def write_graph(graph: Graph, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write a graph to a file, and return its path. An existing file is kept unless `force`.

    The file also has the versions of this package and of the frameworks in use. The only paths in it are those of
    places, which are as reports show them. Raises `NotFollowedError` for operations outside of `OPERATIONS`, with the
    place of each, and for arguments that a file cannot hold; `CheckpointError` if the file cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise CheckpointError(f"{path} exists; pass force=True to replace it")
    _refuse_others(graph)
    constants = {number: node.value for number, node in enumerate(graph.nodes) if node.value is not None}
    forms = {str(number): _form_of(value) for number, value in constants.items()}
    document = {**document_of(graph), "constants": forms}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    stored = {str(number): _to_stored(value) for number, value in constants.items()}
    try:
        _graph_of_text(text, stored)
    except GraphFileError as fault:
        raise NotFollowedError(f"the graph cannot be written: {fault}; verify a writing without it") from None
    with replacement(path, force=force) as temporary:
        save_file(stored, temporary, metadata={METADATA_KEY: text})
    return path


def read_graph(path: str | os.PathLike[str]) -> Graph:
    """Read the graph in a file. Raises `CheckpointError`, in one sentence, for any that `write_graph` did not write."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is {'no file' if path.exists() else 'missing'}; give the file of a graph")
    try:
        with safe_open(path, framework="numpy") as tensors:
            text = (tensors.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise GraphFileError(f"it has no {METADATA_KEY!r} among its metadata, as a graph has")
            names = list(tensors.keys())
            for name in names:
                one_of(tensors.get_slice(name).get_dtype(), _DTYPES, f"the dtype of the array {shown(name)}")
            return _graph_of_text(text, {name: tensors.get_tensor(name) for name in names})
    except GraphFileError as fault:
        raise CheckpointError(f"{path} cannot be read as a graph: {fault}; record the model again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a graph: it is damaged, or of another format ({shown(str(error), 200)}); "
            "record the model again"
        ) from error


def _refuse_others(graph: Graph) -> None:
    """Raise `NotFollowedError` with every operation, argument and constant that a file cannot hold."""
    problems: dict[str, None] = {}
    for node in graph.nodes:
        where = f"{node.operation}{f' at {node.place}' if node.place else ''}"
        if not node.is_given and node.operation not in OPERATIONS:
            problems[f"{where} is none of the operations that a file can have"] = None
        try:
            argument_to_json((node.arguments, node.keywords))
        except GraphFileError as fault:
            problems[f"{where}: {fault}"] = None
        if node.value is not None and str(node.value.dtype) not in _KNOWN_DTYPES:
            problems[f"a constant is of dtype {node.value.dtype}, which a file cannot hold"] = None
    if problems:
        listed = summarize(problems, MAX_LISTED, "; ")
        raise NotFollowedError(
            f"the graph cannot be written: {listed}; verify a writing without it, or both models in one environment"
        )


def _graph_of_text(text: str, stored: Mapping[str, np.ndarray]) -> Graph:
    document = object_of(_parse(text), "the graph")
    check_version(document)
    forms = object_of(document.pop("constants", None), "the list of constants")
    if forms.keys() != stored.keys():
        raise GraphFileError(f"it lists {len(forms)} constants, and has {len(stored)} arrays, not the same")
    return graph_of(document, {_number(name): _from_stored(stored[name], form) for name, form in forms.items()})


def _number(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) < 10 and str(int(name)) == name):
        raise GraphFileError(f"a constant has the name {shown(name)}, not the number of a node")
    return int(name)


# Constants


def _form_of(value: np.ndarray) -> dict[str, Any]:
    """The dtype of a constant, and its axes from that with the longest steps in memory on.

    The steps decide in which order torch computes, and so about the last bit of a result.
    """
    return {"dtype": str(value.dtype), "order": sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))}


def _to_stored(value: np.ndarray) -> np.ndarray:
    """The array as it is in a file: its axes in the order of memory, complex numbers in parts."""
    ordered = value.transpose(_form_of(value)["order"])
    parts = np.stack([ordered.real, ordered.imag], -1) if str(value.dtype) in _PARTS else ordered
    return np.array(parts, order="C")


def _from_stored(stored: np.ndarray, form: Any) -> np.ndarray:
    """The inverse of `_to_stored`."""
    held = fields_of(form, "a constant", ("dtype", "order"))
    dtype = one_of(held["dtype"], _KNOWN_DTYPES, "the dtype of a constant")
    if str(stored.dtype) != _PARTS.get(dtype, dtype):
        raise GraphFileError(f"a constant is said to be of {dtype}, and its array is of {stored.dtype}")
    if dtype in _PARTS:
        if stored.shape[-1:] != (2,):
            raise GraphFileError(f"a complex constant has an array of shape {stored.shape}, and the last axis is of 2")
        stored = np.array(stored, order="C").view(dtype)[..., 0]
    order = list_of(held["order"], "the order of a constant's axes", stored.ndim)
    if any(type(axis) is not int for axis in order) or sorted(order) != list(range(stored.ndim)):
        raise GraphFileError(f"the order of the axes of a constant is {shown(str(order))}, and it has each axis once")
    return np.array(stored, order="C").transpose(sorted(range(stored.ndim), key=order.__getitem__))


# JSON


def _parse(text: str) -> Any:
    """Parse JSON strictly: no field twice, no NaN, no endless nesting."""
    if len(text) > _MAX_CHARACTERS:
        raise GraphFileError(f"it has {len(text)} characters without its constants, and the most is {_MAX_CHARACTERS}")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise GraphFileError("its JSON is nested too deep") from None
    except GraphFileError:
        raise
    except ValueError as error:  # an integer of thousands of digits too
        raise GraphFileError(f"its JSON cannot be read ({shown(str(error), 200)})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise GraphFileError("an object in it has a field twice")
    return made


def _refuse_constant(name: str) -> Any:
    raise GraphFileError(f"it has the number {name}, which is not JSON")
