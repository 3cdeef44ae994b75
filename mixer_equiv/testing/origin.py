"""The origin of Python objects: the module that has them, their source, and the text of a call.

Knows nothing of Mixers, nor of the code that `reproducer` writes with it.
"""

from __future__ import annotations

import ast
import inspect
import os
import symtable
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

from executing import Source

_PYTHON = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "scripts")}


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


def module_of_global(scope: Mapping[str, Any], name: str) -> ModuleType | None:
    """The module of which `name` in `scope` is a global; None if it is none, or the module cannot be imported."""
    module = sys.modules.get(str(scope.get("__name__")))
    same = module is not None and getattr(module, name, None) is scope[name]
    return module if same and scope["__name__"] != "__main__" else None


def public_module(module: ModuleType, name: str) -> str:
    """The shortest name of a package that has what `module` calls `name`."""
    parts = module.__name__.split(".")
    packages = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return next(p for p in packages if getattr(sys.modules.get(p), name, None) is getattr(module, name))


def own_folders() -> list[str]:
    """The folders on the path, in its order, in which nothing is installed: those of the user's own modules."""
    folders = [Path(os.path.abspath(entry)) for entry in sys.path]
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir() and not _is_installed(folder)]


def _is_installed(folder: Path) -> bool:
    """Whether `folder` is part of Python, or holds installed packages or their commands."""
    above = [folder, *folder.parents]
    return any(each in _PYTHON or each.name in ("site-packages", "dist-packages") for each in above)


def source_of(function: FunctionType) -> str | None:
    """The `def` of a function, or the text of a lambda; None where the source cannot be read."""
    if function.__name__ == "<lambda>":
        return _lambda_source(function)
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return None


def _lambda_source(function: FunctionType) -> str | None:
    """The text of the only lambda whose body begins where one of the function's instructions does."""
    code = function.__code__
    tree = Source.for_filename(code.co_filename).tree
    starts = {(line, column) for line, _, column, _ in code.co_positions()}
    lambdas = [node for node in (ast.walk(tree) if tree else ()) if isinstance(node, ast.Lambda)]
    found = [node for node in lambdas if (node.body.lineno, node.body.col_offset) in starts]
    return ast.unparse(found[0]) if len(found) == 1 else None


def scope_of(code: FunctionType | FrameType) -> Mapping[str, Any]:
    """The names that the code of a function, or a frame, can use, but for the built-in ones."""
    if isinstance(code, FrameType):
        return {**code.f_globals, **code.f_locals}
    defaults = {p.name: p.default for p in inspect.signature(code).parameters.values() if p.default is not p.empty}
    return {**code.__globals__, **defaults, **inspect.getclosurevars(code).nonlocals}  # for `eps=eps`


def free_names(text: str) -> list[str]:
    """The names that code uses and does not define, built-in ones among them."""
    top = symtable.symtable(text, "code", "exec")
    outside = {symbol.get_name() for symbol in top.get_symbols() if not symbol.is_assigned()}
    used = {s.get_name() for table in _tables(top) for s in table.get_symbols() if s.is_global()}
    return sorted(outside | (used - {symbol.get_name() for symbol in top.get_symbols()}))


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def call_in(frame: FrameType) -> ast.Call | None:
    """The call that is being made in a frame; None where its source cannot be read."""
    node = Source.executing(frame).node
    return node if isinstance(node, ast.Call) else None
