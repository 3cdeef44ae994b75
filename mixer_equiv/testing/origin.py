"""Where objects of Python are from: the module that has them, their source, and how a call was written."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import symtable
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

_OURS = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARY = Path(os.__file__).resolve().parent


def home_of(value: Any) -> tuple[ModuleType, str] | None:
    """The module that a class or function can be imported from, and its name there; None for local ones."""
    name, home = getattr(value, "__qualname__", ""), getattr(value, "__module__", None)
    module = sys.modules.get(home) if isinstance(home, str) and home != "__main__" else None
    if not name or module is None or "<" in name:
        return None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return (module, name) if found is value else None


def public_module(module: ModuleType, name: str) -> str:
    """The shortest name of a package that has what `module` calls `name`."""
    parts = module.__name__.split(".")
    packages = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next(p for p in packages if getattr(sys.modules.get(p), name, None) is getattr(module, name))


def folder_of(module: ModuleType) -> str | None:
    """The folder on the path in which a module lies; None if it is installed."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == _OURS:
        return None
    path, parts = Path(file).resolve(), module.__name__.split(".")
    inner = [*parts, "__init__.py"] if path.name == "__init__.py" else [*parts[:-1], f"{parts[-1]}.py"]
    root = Path(*path.parts[: -len(inner)])
    return str(root) if root.joinpath(*inner) == path and _is_ones_own(root) else None


def folders_in_use() -> list[str]:
    """The folders on the path, in its order, that modules were imported from and that are not of what is installed."""
    entries = {entry: Path(entry).resolve() for entry in map(os.path.abspath, sys.path)}
    own = {entry: str(folder) for entry, folder in entries.items() if folder.is_dir() and _is_ones_own(folder)}
    starts = tuple(os.path.join(entry, "") for entry in own)  # as files are called, also where the entry is a link
    used = {folder_of(module) for module in list(sys.modules.values()) if _file_of(module).startswith(starts)}
    return [folder for folder in dict.fromkeys(own.values()) if folder in used]


def _file_of(module: ModuleType) -> str:
    """The file of a module that is not of what is installed, or ""."""
    file = getattr(module, "__file__", None)
    installed = not isinstance(file, str) or _INSTALLED.intersection(file.split(os.sep))
    return "" if installed or file is None else file


def _is_ones_own(folder: Path) -> bool:
    return folder != _LIBRARY and _LIBRARY not in folder.parents and folder.name not in _INSTALLED


def source_of(function: FunctionType) -> str | None:
    """The `def` of a function, or the text of a lambda."""
    if function.__name__ == "<lambda>":
        return _lambda(function.__code__)
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return None


def scope_of(code: FunctionType | FrameType) -> Mapping[str, Any]:
    """The names that the code of a function, or a frame, can use, but for the built-in ones."""
    if isinstance(code, FrameType):
        return {**code.f_globals, **code.f_locals}
    defaults = {p.name: p.default for p in inspect.signature(code).parameters.values() if p.default is not p.empty}
    return {**code.__globals__, **defaults, **inspect.getclosurevars(code).nonlocals}  # for `eps=eps`


def holder_of(scope: Mapping[str, Any], name: str) -> ModuleType | None:
    """The module whose global `name` is what it is in `scope`, if it can be imported."""
    module = sys.modules.get(str(scope.get("__name__")))
    same = module is not None and getattr(module, name, None) is scope[name]
    return module if same and scope["__name__"] != "__main__" else None


def free_names(text: str) -> list[str]:
    """The names that code uses and does not define, built-in ones among them."""
    top = symtable.symtable(text, "code", "exec")
    outside = {symbol.get_name() for symbol in top.get_symbols() if not symbol.is_assigned()}
    used = {s.get_name() for table in _tables(top) for s in table.get_symbols() if s.is_global()}
    return sorted(outside | (used - {symbol.get_name() for symbol in top.get_symbols()}))


def call_in(frame: FrameType) -> ast.Call | None:
    """The call that is being made in a frame, as it is written there; None where its source is not to be had."""
    at = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    for node in _nodes(frame.f_code.co_filename):
        if isinstance(node, ast.Call) and (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) == at:
            return node
    return None


def _lambda(code: CodeType) -> str | None:
    """The text of the only lambda whose body lies where the code's instructions are from."""
    starts = {(line, column) for line, _, column, _ in code.co_positions()}
    found = [
        ast.unparse(node)
        for node in _nodes(code.co_filename)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and (node.body.lineno, node.body.col_offset) in starts
    ]
    return found[0] if len(found) == 1 else None


def _nodes(filename: str) -> Iterator[ast.AST]:
    try:
        yield from ast.walk(ast.parse("".join(linecache.getlines(os.fspath(filename)))))
    except SyntaxError:
        return


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)
