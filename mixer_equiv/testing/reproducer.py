"""A call as Python code that does the same by itself: with its imports, and every name in it defined.

Values are written as they are where that can be: numbers, strings, configs, small arrays, and what can be
imported. A lambda, or a function inside a test, is copied from its source, and a model is the expression
that the call was given. What neither gives is left to be filled in, and said to be.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import math
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import PurePath
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np

from mixer_equiv.testing import origin

WIDTH = 100
MOST_ELEMENTS = 600  # of an array that is written out
UNWRITTEN = "to be filled in:"  # in the code, before what there is no code for
SIDES = {"a": "mine", "b": "other"}  # what is given by place, and called so where it has no name


class _UnwrittenError(Exception):
    """There is no code for a value, and why."""


class _HeldError(_UnwrittenError):
    """Because only the test has it; by what name, is not said yet."""


def written(function: str, arguments: Mapping[str, Any], frame: FrameType) -> str:
    """Code that calls `mixer_equiv`'s `function` again, and prints the result.

    `arguments` are by name; those of `SIDES` are written without it. `frame` is where the call is being made,
    whose source is read where a value does not tell how it came to be.
    """
    call = origin.call_in(frame)
    nodes: dict[str, ast.expr] = dict(zip(SIDES, call.args, strict=False)) if call else {}
    nodes.update({keyword.arg: keyword.value for keyword in call.keywords if keyword.arg} if call else {})
    scope = origin.scope_of(frame)
    script = _Script(function)
    texts = {
        name: script.argument(SIDES.get(name, name), value, nodes.get(name), scope) for name, value in arguments.items()
    }
    items = [text if name in SIDES else f"{name}={text}" for name, text in texts.items()]
    return f"{script}report = {_joined(f'{function}(', items, ')')}\nprint(report)\n"


class _Script:
    """Imports and definitions, for expressions after them."""

    def __init__(self, function: str) -> None:
        self.folders: list[str] = []
        self.imports: set[tuple[str, str, str]] = {("mixer_equiv", function, function)}  # module, its name, ours
        self.lines: list[str] = []
        self.bound: dict[str, Any] = dict.fromkeys((function, "report", "sys"))

    def __str__(self) -> str:
        plain = [
            f"import {module}" + f" as {ours}" * (ours != module) for module, name, ours in self.imports if not name
        ]
        froms: dict[str, list[str]] = {}
        for module, name, _ in sorted(row for row in self.imports if row[1]):
            froms.setdefault(module, []).append(name)
        lines = [*sorted(plain), *(f"from {module} import {', '.join(names)}" for module, names in froms.items())]
        if self.folders:
            lines = ["import sys", "", f"sys.path[:0] = {_joined('[', list(map(repr, self.folders)), ']')}", "", *lines]
        return "\n".join([*lines, "", *self.lines, ""])

    def argument(self, name: str, value: Any, node: ast.expr | None, scope: Mapping[str, Any]) -> str:
        """An expression for an argument that the call was given as `node`; `name`, defined before, if it is long."""
        if value is not None and self.bound.get(name) is value:
            return name
        draft = self._copy()
        try:
            try:
                text = draft.value(value, name)
            except _UnwrittenError as error:
                if node is None:
                    raise
                draft = self._copy()
                text = draft.given(node, scope, error)
        except _UnwrittenError as error:
            draft = self._copy()
            draft.lines.append(f"{name} = ...  # {UNWRITTEN} {error}")
            text = name
        if len(text) > WIDTH // 2 and name not in draft.bound:
            text = draft.bind(name, value, text)
        vars(self).update(vars(draft))
        return text

    def _copy(self) -> _Script:
        new = object.__new__(_Script)
        vars(new).update({name: part.copy() for name, part in vars(self).items()})
        return new

    def value(self, value: Any, name: str = "") -> str:
        """An expression for a value; a function that has no name is called `name`. Raises where there is none."""
        for holds, write in _WRITERS:
            if holds(value):
                return write(self, value, name)
        what = f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__qualname__}"
        raise _HeldError(f"{what} that only the test has")

    def given(self, node: ast.expr, scope: Mapping[str, Any], error: _UnwrittenError) -> str:
        """What an argument was given as, since there is no code for its value, as `error` says."""
        text = ast.unparse(node)
        try:
            return self.expression(text, scope)
        except _UnwrittenError as inner:
            if isinstance(node, ast.Attribute) and isinstance(error, _HeldError):  # such as self.model
                raise _UnwrittenError(f"{text}, {error}") from inner
            raise

    def expression(self, text: str, scope: Mapping[str, Any]) -> str:
        """`text`, once its names are defined as they are in `scope`."""
        for name in origin.free_names(text):
            if name in scope:
                self._define(name, scope[name], scope)
            elif not hasattr(builtins, name):
                raise _UnwrittenError(f"{name} has no value")
        return text

    def bind(self, name: str, value: Any, text: str) -> str:
        """Have `name` stand for `value`, which `text` is an expression for, or the definition of."""
        if name in self.bound and self.bound[name] is not value:
            raise _UnwrittenError(f"there are two things called {name}")
        if name not in self.bound and text != name:
            self.lines.append(f"\n{text}\n" if text.startswith(("def ", "@")) else f"{name} = {text}")
        self.bound[name] = value
        return name

    def _define(self, name: str, value: Any, scope: Mapping[str, Any]) -> None:
        if name in self.bound and self.bound[name] is value:
            return
        if isinstance(value, ModuleType):
            self._import(value, "", name, value)
            return
        draft = self._copy()
        try:
            text = draft.value(value, name)
            draft.bind(name, value, text)
        except _UnwrittenError as error:
            module = origin.holder_of(scope, name)
            if module is None and isinstance(error, _HeldError):
                raise _UnwrittenError(f"{name}, {error}") from error
            if module is None:
                raise
            draft = self._copy()
            draft._import(module, name, name, value)
        vars(self).update(vars(draft))

    def _import(self, module: ModuleType, name: str, ours: str, value: Any) -> None:
        folder = origin.folder_of(module)
        if folder is not None:  # and what it imports may lie in others
            self.folders = list(dict.fromkeys([folder, *origin.folders_in_use(), *self.folders]))
        self.imports.add((origin.public_module(module, name) if name else module.__name__, name, ours))
        self.bind(ours, value, ours)

    def importable(self, value: Any, _: str) -> str:
        home = origin.home_of(value)
        assert home is not None
        module, name = home
        root = name.partition(".")[0]
        if module is not builtins:
            self._import(module, root, root, getattr(module, root))
        return name

    def function(self, function: FunctionType, name: str) -> str:
        text = origin.source_of(function)
        if text is None:
            raise _UnwrittenError("a function whose source is not to be had")
        self.expression(text, origin.scope_of(function))
        return self.bind(name if text.startswith("lambda") else function.__name__, function, text)

    def record(self, value: Any, _: str) -> str:
        """A frozen dataclass, without the fields that are at their defaults."""
        fields = [field for field in dataclasses.fields(value) if field.init]
        given = {f.name: getattr(value, f.name) for f in fields if getattr(value, f.name) != f.default}
        items = [f"{name}={self.value(field)}" for name, field in given.items()]
        return _joined(f"{self.importable(type(value), '')}(", items, ")")

    def array(self, array: np.ndarray, _: str) -> str:
        self._import(np, "", "np", np)
        return f"np.array({self.value(array.reshape(-1).tolist())}, {array.dtype.name!r}).reshape({array.shape})"

    def tensor(self, tensor: Any, _: str) -> str:
        torch = sys.modules["torch"]
        self._import(torch, "", "torch", torch)
        values = self.value(tensor.reshape(-1).tolist())
        return f"torch.tensor({values}, dtype={tensor.dtype}).reshape({tuple(tensor.shape)})"

    def sequence(self, values: Any, _: str) -> str:
        left, right = _BRACKETS[type(values)]
        items = [self.value(item) for item in values]
        return _joined(left, items, ("," if len(items) == 1 and left == "(" else "") + right)

    def mapping(self, values: dict[Any, Any], _: str) -> str:
        return _joined("{", [f"{self.value(key)}: {self.value(item)}" for key, item in values.items()], "}")

    def number(self, value: float, _: str) -> str:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"


_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}


def _is_record(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return bool(parameters and parameters.frozen and origin.home_of(type(value)))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= MOST_ELEMENTS


def _is_tensor(value: Any) -> bool:
    """Whether `value` is a small torch tensor of numbers that Python has, each in its place, and no gradient."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor or value.requires_grad or value.layout != torch.strided:
        return False
    plain = value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool)
    whole = value.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return bool((plain or whole) and value.device.type == "cpu" and value.numel() <= MOST_ELEMENTS)


# What is written how, the first that holds.
_WRITERS: tuple[tuple[Callable[[Any], bool], Callable[[_Script, Any, str], str]], ...] = (
    (lambda value: value is None or type(value) in (bool, int, str), lambda script, value, name: repr(value)),
    (lambda value: type(value) is float, _Script.number),
    (lambda value: isinstance(value, PurePath), lambda script, value, name: repr(str(value))),
    (lambda value: isinstance(value, np.generic), lambda script, value, name: script.value(value.item())),
    (lambda value: type(value) in _BRACKETS, _Script.sequence),
    (lambda value: type(value) is dict, _Script.mapping),
    (_is_array, _Script.array),
    (_is_tensor, _Script.tensor),
    (_is_record, _Script.record),
    (lambda value: origin.home_of(value) is not None, _Script.importable),
    (lambda value: isinstance(value, FunctionType), _Script.function),
)


def _joined(left: str, items: list[str], right: str) -> str:
    """Items between brackets, in one line if they fit, else one a line."""
    line = left + ", ".join(items) + right
    if len(line) <= WIDTH and "\n" not in line:
        return line
    numbers = all(re.fullmatch(r"[-+.\w]+", item) for item in items)
    lines = textwrap.wrap(", ".join(items) + ",", WIDTH - 4) if numbers else [f"{item}," for item in items]
    inner = textwrap.indent("\n".join(lines), "    ")
    return f"{left}\n{inner}\n{right.lstrip(',')}"
