"""Nested arrays by name, out of the objects of a pickle: dicts, lists, and objects that hold arrays as attributes.

Start at `contents_of`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixer_equiv.arrays.interop import NotAnArray, as_mapping, is_array
from mixer_equiv.checkpoints.formats.base import METADATA_KEY, Contents
from mixer_equiv.checkpoints.formats.pickles.arrays import PickledArray, PickledDtype
from mixer_equiv.checkpoints.formats.pickles.machine import Global, PickleError, Placeholder
from mixer_equiv.checkpoints.formats.pickles.settings import Settings
from mixer_equiv.checkpoints.formats.pickles.tensors import Storage, StorageKind, Tensor
from mixer_equiv.errors import CheckpointError, summarize

# Nothing that people write is nested deeper, and no reader follows objects that hold themselves.
MAX_DEPTH = 100

# Objects, and single numbers and texts, that a pickle may show, each as often as it stands in others.
MAX_SHOWN, MAX_PLAIN = 500_000, 4_000_000
_PLAIN = (int, float, str, bytes, type(None))


class Tree(NamedTuple):
    """An object with arrays in place of what stood for them, and notes on objects that were passed over."""

    root: Any
    notes: tuple[str, ...]


def read_tree(root: Any, array: Callable[[Tensor], Any]) -> Tree:
    """`root` with the array that `array` gives in the place of each tensor, and with all objects as plain data.

    A module of torch, pickled whole, becomes its state_dict, any other object that holds arrays the dict of its
    attributes, and NumPy's array of one dict that dict. What is left of other objects is a `NotAnArray`, and a note
    names them.
    """
    return _read_by(_Reader(array), root)


def contents_of(root: Any, path: Path, array: Callable[[Tensor], Any]) -> Contents:
    """What the object of a pickle holds. Raises `CheckpointError` for one that has no arrays by name."""
    reader = _Reader(array)
    read, notes = _read_by(reader, root)
    tree = as_mapping(read)
    if tree is None:
        raise CheckpointError(f"{path} holds {kind_of(read)}; expected a state_dict{_advice(read)}")
    metadata = (getattr(root, "attributes", None) or {}).get(METADATA_KEY)
    return Contents(tree, metadata if isinstance(metadata, str) else None, notes, reader.settings.agreed)


def _read_by(reader: _Reader, root: Any) -> Tree:
    tree = reader.read(root, 0)
    notes = []
    if reader.opened:
        notes.append(f"read as the arrays in them: {summarize(sorted(reader.opened))}")
    if reader.passed:
        notes.append(f"objects that are no arrays were passed over: {summarize(sorted(reader.passed))}")
    return Tree(tree, (*notes, *reader.settings.notes))


def kind_of(tree: Any) -> str:
    """What the one object of a file is, in words."""
    if isinstance(tree, NotAnArray):
        return tree.what
    if _are_arrays(tree):
        return f"a list of {len(tree)} arrays without names" if len(tree) > 1 else "a list of 1 array without a name"
    return "an array without a name" if is_array(tree) else f"a {type(tree).__name__}"


def _are_arrays(tree: Any) -> bool:
    return isinstance(tree, list | tuple) and bool(tree) and all(map(is_array, tree))


def _advice(tree: Any) -> str:
    """How to name arrays that are in a list."""
    if not _are_arrays(tree):
        return ""
    return (
        "; name them in the order in which they were saved: np.savez('named.npz', **dict(zip(names, arrays, "
        "strict=True))), where names is list(model.state_dict()) for torch"
    )


@dataclasses.dataclass
class _Reader:
    array: Callable[[Tensor], Any]
    opened: set[str] = dataclasses.field(default_factory=set)
    passed: set[str] = dataclasses.field(default_factory=set)
    shown: int = 0
    plain: int = 0
    settings: Settings = dataclasses.field(default_factory=Settings)
    around: set[int] = dataclasses.field(default_factory=set)  # ids of the objects that hold the one that is read

    def read(self, value: Any, depth: int) -> Any:
        self._count(value)
        if depth > MAX_DEPTH:
            return NotAnArray(f"something nested more than {MAX_DEPTH} deep")
        if isinstance(value, PickledArray) and isinstance(value.only, dict):
            value = value.only
        if not isinstance(value, dict | list | tuple | Placeholder):
            return self._leaf(value)
        if id(value) in self.around:
            return NotAnArray("a reference to what holds it")
        self.around.add(id(value))
        try:
            return self._node(value, depth)
        finally:
            self.around.discard(id(value))

    def _count(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self.plain += 1
        else:
            self.shown += 1
        if self.shown > MAX_SHOWN or self.plain > MAX_PLAIN:
            raise PickleError(
                f"it shows more than {MAX_SHOWN} objects, or {MAX_PLAIN} numbers and texts, each counted as often as "
                "it stands in others"
            )

    def _node(self, value: Any, depth: int) -> Any:
        match value:
            case dict():
                return {key: self.read(item, depth + 1) for key, item in value.items()}
            case list() | tuple():
                return [self.read(item, depth + 1) for item in value]
        return self._object(value, depth)

    def _leaf(self, value: Any) -> Any:
        match value:
            case Tensor():
                return self.array(value)
            case PickledArray(array=None):
                return NotAnArray("an array of Python objects")
            case PickledArray():
                return value.array
            case Storage() | StorageKind() | PickledDtype() | Global():
                return NotAnArray(f"a {type(value).__name__.lower()}")
        return value

    def _object(self, value: Placeholder, depth: int) -> Any:
        if is_module(value):
            self.opened.add(value.name)
            return {name: self.read(item, depth + 1) for name, item in self._flattened(value, "", depth)}
        if isinstance(value.state, dict):
            before = self.opened.copy(), self.passed.copy()
            attributes = self.read(value.state, depth + 1)
            if holds_arrays(attributes):
                self.opened.add(value.name)
                return attributes
            self.opened, self.passed = before
        self.passed.add(value.name)
        return NotAnArray(f"an object of {value.name}")

    def _flattened(self, module: Placeholder, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Names and tensors of a module and of all modules in it, as its state_dict has them."""
        if depth > MAX_DEPTH:
            raise PickleError(f"its modules are nested more than {MAX_DEPTH} deep")
        self.settings.add(module)
        for name, item in _kept(module).items():
            self.shown += 1
            if is_module(item):
                yield from self._flattened(item, f"{prefix}{name}.", depth + 1)
            elif isinstance(item, Tensor):
                yield f"{prefix}{name}", item


def is_module(value: Any) -> bool:
    """Whether an object is an `nn.Module`, or one of TorchScript."""
    if not isinstance(value, Placeholder) or not isinstance(value.state, dict):
        return False
    parts = (value.state.get(key) for key in _PARTS)
    return value.name.startswith(_SCRIPT) or all(isinstance(part, dict) for part in parts)


_PARTS = "_parameters", "_buffers", "_modules"
_SCRIPT = "__torch__."  # where TorchScript keeps classes


def _kept(module: Placeholder) -> Mapping[Any, Any]:
    """Parameters, buffers and modules by name: all attributes of a module of TorchScript, which has no such parts."""
    state = module.state
    if module.name.startswith(_SCRIPT):
        return state
    transient = state.get("_non_persistent_buffers_set", ())
    parameters, buffers, modules = (state[part] for part in _PARTS)
    return {**parameters, **{name: buffer for name, buffer in buffers.items() if name not in transient}, **modules}


def holds_arrays(tree: Any) -> bool:
    """Whether there is an array in nested dicts and lists."""
    node = as_mapping(tree)
    return any(map(holds_arrays, node.values())) if node is not None else is_array(tree)
