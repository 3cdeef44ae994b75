"""The page of layouts, written from the registry: the table of all, then each with its rows."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from docs.build.markdown import code, plain, table
from docs.build.public_names import find
from mixer_equiv.checkpoints.convention_warnings import describe_activation
from mixer_equiv.layouts import LAYOUTS, Conventions, Layout
from mixer_equiv.render.layouts import describe_layout, layouts_markdown

INTRODUCTION = """# Layouts

A layout is the names and axis orders that an implementation gives the parameters of a Mixer. `mixer-equiv layouts`
prints this table:

"""

BELOW_THE_TABLE = """
A row of the tables below has the canonical name, the name in the layout, and the axes of both as an einops pattern:
parentheses join axes in one dimension, `1` is a dimension of size one, and without an arrow the axes are the same.
`{i}` is the number of the block, `{L}` the number of blocks. More is at [`Row`][mixer_equiv.layouts.Row].

"""


def write() -> str:
    """The page in Markdown."""
    rows = [describe_layout(layout) for layout in LAYOUTS.values()]
    return INTRODUCTION + layouts_markdown(rows) + BELOW_THE_TABLE + "\n".join(map(_section, LAYOUTS.values()))


def _section(layout: Layout) -> str:
    lines = [f"## {layout.name} {{ #{layout.name} }}\n", f"{_docstring(layout)}\n"]
    lines += [f"- {fact}" for fact in _facts(layout)]
    rows = [(code(row.canonical), code(row.foreign), code(row.pattern)) for row in layout.rows]
    return "\n".join([*lines, "", table(("canonical name", f"name in `{layout.name}`", "axes"), rows)])


def _docstring(layout: Layout) -> str:
    """The docstring of the module that defines a layout."""
    for module in find("mixer_equiv.layouts").modules.values():
        constants = vars(importlib.import_module(module.path))
        if any(constants.get(name) is layout for name, value in module.attributes.items() if not value.is_alias):
            return module.docstring.value if module.docstring else ""
    raise ValueError(f"no module of mixer_equiv.layouts defines the layout {layout.name}")


def _facts(layout: Layout) -> Iterator[str]:
    """Sentences on a layout's conventions and on what it can hold."""
    yield f"Its code computes {_in_words(layout.computes)}."
    if layout.trained_with is not None:
        yield f"Weights in it are taken as trained with {_in_words(layout.trained_with)}, unless a file says otherwise."
    for glob, conventions in layout.provenance.items():
        yield f"A file called {code(glob)} was trained with {_in_words(conventions)}."
    if layout.read_only:
        yield "It is read, and not written."
    for constraint in layout.constraints:
        yield f"Official weights fit only with {plain(str(constraint))}."


def _in_words(conventions: Conventions) -> str:
    eps = f"{conventions.layer_norm_eps:g}".replace("e-0", "e-")
    return f"{describe_activation(conventions.activation)} and LayerNorms of eps {eps}"
