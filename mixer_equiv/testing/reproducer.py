"""`code_for_call`: a call as Python code that repeats it by itself, with its imports and every name in it defined.

Numbers, strings, configs, small arrays and importable objects are written as values. A lambda, or a function
inside a test, is copied from its source, and a model is the expression that was the call's argument. Where
none of these is possible, a comment in the code says what is to be filled in.
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

LINE_LENGTH = 100
MAX_ELEMENTS = 600  # of an array that is written out
FILL_IN = "to be filled in:"  # in the code, before the description of a value that has none
SIDES = {"a": "mine", "b": "other"}  # positional arguments, and the variables that hold them if they need one


class _NoCodeError(Exception):
    """A value that no code can be written for; the message says why."""


class _LocalValueError(_NoCodeError):
    """The same for a value that exists in the test alone; the message lacks its name."""


def code_for_call(function: str, arguments: Mapping[str, Any], frame: FrameType) -> str:
    """Code that calls `mixer_equiv`'s `function` again, and prints the result.

    `arguments` are by name; those in `SIDES` are written as positional ones. `frame` is where the call is
    made: its source is read for arguments whose values cannot be written.
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
    return f"{script}report = {_join(f'{function}(', items, ')')}\nprint(report)\n"


class _Script:
    """Imports and definitions, for the expressions that its methods return."""

    def __init__(self, function: str) -> None:
        self.imports = {f"from mixer_equiv import {function}"}
        self.lines: list[str] = []
        self.bound: dict[str, Any] = dict.fromkeys((function, "report", "sys"))  # values by name

    def __str__(self) -> str:
        lines = sorted(self.imports, key=lambda line: (line.startswith("from"), line))
        if folders := origin.own_folders():
            lines = ["import sys", "", f"sys.path[:0] = {_join('[', list(map(repr, folders)), ']')}", "", *lines]
        return "\n".join([*lines, "", *self.lines, ""])

    def argument(self, name: str, value: Any, node: ast.expr | None, scope: Mapping[str, Any]) -> str:
        """An expression for an argument, given to the call as `node`; a long one is first assigned to `name`."""
        if value is not None and self.bound.get(name) is value:
            return name
        draft = self._copy()
        try:
            try:
                text = draft.value(value, name)
            except _NoCodeError as error:
                draft = self._copy()
                text = draft.from_source(node, scope, error)
        except _NoCodeError as error:
            draft = self._copy()
            draft.lines.append(f"{name} = ...  # {FILL_IN} {error}")
            text = name
        if len(text) > LINE_LENGTH // 2 and name not in draft.bound:
            text = draft.bind(name, value, text)
        self._accept(draft)
        return text

    def _copy(self) -> _Script:
        """A draft, which is accepted only if no part of it turns out to have no code."""
        draft = object.__new__(_Script)
        vars(draft).update({name: part.copy() for name, part in vars(self).items()})
        return draft

    def _accept(self, draft: _Script) -> None:
        vars(self).update(vars(draft))

    def value(self, value: Any, name: str = "") -> str:
        """An expression for a value; a lambda is assigned to `name`. Raises `_NoCodeError` where there is none."""
        for is_kind, write in _WRITERS:
            if is_kind(value):
                return write(self, value, name)
        noun = f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__qualname__}"
        raise _LocalValueError(f"{noun} that only the test has")

    def from_source(self, node: ast.expr | None, scope: Mapping[str, Any], error: _NoCodeError) -> str:
        """The text of an argument whose value has no code, as `error` says."""
        if node is None:
            raise error
        text = ast.unparse(node)
        try:
            return self.expression(text, scope)
        except _NoCodeError as inner:
            if isinstance(node, ast.Attribute) and isinstance(error, _LocalValueError):  # such as self.model
                raise _NoCodeError(f"{text}, {error}") from inner
            raise

    def expression(self, text: str, scope: Mapping[str, Any]) -> str:
        """`text`, after defining its names as they are in `scope`."""
        for name in origin.free_names(text):
            if name in scope:
                self._define(name, scope[name], scope)
            elif not hasattr(builtins, name):
                raise _NoCodeError(f"{name} has no value")
        return text

    def bind(self, name: str, value: Any, text: str) -> str:
        """Assign `text`, the expression or definition of `value`, to `name`."""
        if name in self.bound and self.bound[name] is not value:
            raise _NoCodeError(f"there are two things called {name}")
        if name not in self.bound and text != name:
            self.lines.append(f"\n{text}\n" if text.startswith(("def ", "@")) else f"{name} = {text}")
        self.bound[name] = value
        return name

    def _define(self, name: str, value: Any, scope: Mapping[str, Any]) -> None:
        if name in self.bound and self.bound[name] is value:
            return
        if isinstance(value, ModuleType):
            self._import_module(value, name)
            return
        draft = self._copy()
        try:
            draft.bind(name, value, draft.value(value, name))
        except _NoCodeError as error:
            module = origin.module_of_global(scope, name)
            if module is None:
                raise _NoCodeError(f"{name}, {error}") if isinstance(error, _LocalValueError) else error from None
            draft = self._copy()
            draft._import_name(module, name, value)
        self._accept(draft)

    def _import_module(self, module: ModuleType, name: str) -> None:
        self.imports.add(f"import {module.__name__}" + f" as {name}" * (name != module.__name__))
        self.bind(name, module, name)

    def _import_name(self, module: ModuleType, name: str, value: Any) -> None:
        self.imports.add(f"from {origin.public_module(module, name)} import {name}")
        self.bind(name, value, name)

    def importable(self, value: Any, _: str = "") -> str:
        home = origin.home_of(value)
        assert home is not None
        module, name = home
        outer = name.partition(".")[0]
        if module is not builtins:
            self._import_name(module, outer, getattr(module, outer))
        return name

    def function(self, function: FunctionType, name: str) -> str:
        text = origin.source_of(function)
        if text is None:
            raise _NoCodeError("a function whose source cannot be read")
        self.expression(text, origin.scope_of(function))
        return self.bind(name if text.startswith("lambda") else function.__name__, function, text)

    def frozen_dataclass(self, value: Any, _: str) -> str:
        """The call of its class, without the fields that are at their defaults."""
        fields = [field for field in dataclasses.fields(value) if field.init]
        given = {f.name: getattr(value, f.name) for f in fields if getattr(value, f.name) != f.default}
        items = [f"{name}={self.value(field)}" for name, field in given.items()]
        return _join(f"{self.importable(type(value))}(", items, ")")

    def array(self, array: np.ndarray, _: str) -> str:
        self._import_module(np, "np")
        return f"np.array({self.value(array.reshape(-1).tolist())}, {array.dtype.name!r}).reshape({array.shape})"

    def tensor(self, tensor: Any, _: str) -> str:
        self._import_module(sys.modules["torch"], "torch")
        values = self.value(tensor.reshape(-1).tolist())
        return f"torch.tensor({values}, dtype={tensor.dtype}).reshape({tuple(tensor.shape)})"

    def sequence(self, values: Any, _: str) -> str:
        left, right = _BRACKETS[type(values)]
        items = [self.value(item) for item in values]
        return _join(left, items, ("," if len(items) == 1 and left == "(" else "") + right)

    def mapping(self, values: dict[Any, Any], _: str) -> str:
        return _join("{", [f"{self.value(key)}: {self.value(item)}" for key, item in values.items()], "}")

    def number(self, value: float, _: str) -> str:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"


_BRACKETS: dict[type, tuple[str, str]] = {list: ("[", "]"), tuple: ("(", ")")}
_TENSOR_DTYPES = ("float64", "float32", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64")


def _is_frozen_dataclass(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return bool(parameters and parameters.frozen and origin.home_of(type(value)))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size <= MAX_ELEMENTS


def _is_tensor(value: Any) -> bool:
    """Whether `value` is a small torch tensor that its numbers determine."""
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor:
        return False
    is_plain = value.layout == torch.strided and value.device.type == "cpu" and not value.requires_grad
    is_written = str(value.dtype).removeprefix("torch.") in _TENSOR_DTYPES and value.numel() <= MAX_ELEMENTS
    return is_plain and is_written


# How values are written: the first kind that one is of.
_WRITERS: tuple[tuple[Callable[[Any], bool], Callable[[_Script, Any, str], str]], ...] = (
    (lambda value: value is None or type(value) in (bool, int, str), lambda script, value, name: repr(value)),
    (lambda value: type(value) is float, _Script.number),
    (lambda value: isinstance(value, PurePath), lambda script, value, name: repr(str(value))),
    (lambda value: isinstance(value, np.generic), lambda script, value, name: script.value(value.item())),
    (lambda value: type(value) in _BRACKETS, _Script.sequence),
    (lambda value: type(value) is dict, _Script.mapping),
    (_is_array, _Script.array),
    (_is_tensor, _Script.tensor),
    (_is_frozen_dataclass, _Script.frozen_dataclass),
    (lambda value: origin.home_of(value) is not None, _Script.importable),
    (lambda value: isinstance(value, FunctionType), _Script.function),
)


def _join(left: str, items: list[str], right: str) -> str:
    """Items between brackets, in one line if they fit, else one a line, or numbers as many as fit."""
    line = left + ", ".join(items) + right
    if len(line) <= LINE_LENGTH and "\n" not in line:
        return line
    numbers = all(re.fullmatch(r"[-+.\w]+", item) for item in items)
    lines = textwrap.wrap(", ".join(items) + ",", LINE_LENGTH - 4) if numbers else [f"{item}," for item in items]
    inner = textwrap.indent("\n".join(lines), "    ")
    return f"{left}\n{inner}\n{right.lstrip(',')}"
