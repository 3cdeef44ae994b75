"""The public names of the package, read from its source without importing any framework."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import griffe

from docs.build.docstrings import comment_of

ROOT = Path(__file__).parents[2]

# The package itself, and what its docstring calls public.
PUBLIC_MODULES = (
    "mixer_equiv",
    "mixer_equiv.layouts",
    "mixer_equiv.models",
    "mixer_equiv.models.torch",
    "mixer_equiv.models.flax",
    "mixer_equiv.models.nnx",
    "mixer_equiv.models.numpy",
    "mixer_equiv.testing",
    "mixer_equiv.testing.strategies",
    "mixer_equiv.render",
)


@cache
def package() -> griffe.Module:
    """The package as its source describes it."""
    loaded = griffe.load("mixer_equiv", search_paths=[ROOT], allow_inspection=False, resolve_aliases=True)
    assert isinstance(loaded, griffe.Module)
    return loaded


def find(path: str) -> griffe.Object | griffe.Alias:
    """The object at a dotted path."""
    within = path.removeprefix("mixer_equiv").removeprefix(".")
    return package()[within] if within else package()


def names_in(module: str) -> list[str]:
    """Paths of the public names of a module: its `__all__`, else the classes and functions that it defines."""
    found = find(module)
    names = found.exports or [
        name
        for name, member in found.members.items()
        if not member.is_alias and (member.is_class or member.is_function) and not name.startswith("_")
    ]
    return [f"{module}.{name}" for name in names]


def public_names() -> dict[str, str]:
    """Every public object once: the path at which it is defined, and the shortest public path to it."""
    paths = [path for module in PUBLIC_MODULES for path in names_in(module)]
    return {find(path).canonical_path: path for path in sorted(paths, key=lambda path: -path.count("."))}


def summary(path: str) -> str:
    """The first paragraph of an object's docstring as a line of Markdown, else its comment; empty without either."""
    found = find(path)
    if found.docstring is not None:
        return " ".join(found.docstring.value.split("\n\n")[0].split()).replace("|", r"\|")
    target = found.final_target if isinstance(found, griffe.Alias) else found
    return comment_of(target) if isinstance(target, griffe.Attribute) else ""
