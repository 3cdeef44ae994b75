"""Docstrings as the reference shows them: comments stand in for those of constants, and errors are a paragraph."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

# The beginnings of lines that the reference shows as paragraphs of their own.
_PARAGRAPHS = re.compile(r"(?<=\S)\n(?=(?:Raises|Returns|Warns) )")


class ReferenceDocstrings(griffe.Extension):
    """Give attributes their comment as docstring, and show a constant's value only if it is a literal or a type."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read with its members."""
        if obj.docstring is not None:
            obj.docstring.value = _PARAGRAPHS.sub("\n\n", obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for every attribute that it has read."""
        if attr.docstring is None and (text := comment_of(attr)):
            attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)
        in_module = attr.parent is not None and attr.parent.is_module  # a dataclass needs its fields' defaults
        if in_module and not (_is_literal(str(attr.value)) or str(attr.value).startswith("Literal[")):
            attr.value = None


def comment_of(attr: griffe.Attribute) -> str:
    """The comment behind the first line of an attribute, else the lines of comment directly above it."""
    if attr.lineno is None or isinstance(attr.filepath, list):
        return ""
    lines = attr.lines_collection[attr.filepath]
    line = lines[attr.lineno - 1]
    if attr.lineno == attr.endlineno and "  # " in line:
        return _as_sentence(line.rpartition("  # ")[2])
    above: list[str] = []
    for number in range(attr.lineno - 2, -1, -1):
        text = lines[number].strip()
        if not text.startswith("# "):
            break
        above.insert(0, text.removeprefix("# "))
    return _as_sentence(" ".join(above))


def _is_literal(code: str) -> bool:
    try:
        ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return False
    return True


def _as_sentence(text: str) -> str:
    if not text or text.startswith(("type:", "noqa")):
        return ""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
