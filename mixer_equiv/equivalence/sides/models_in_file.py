"""What there is to name in a file of Python: classes, models and functions that make one, the likeliest first.

Start at `what_to_type` and `no_such_name`.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import shlex
import typing
from collections.abc import Callable, Sequence
from typing import Any

from mixer_equiv.equivalence.sides.adapters import is_model, is_model_class
from mixer_equiv.errors import did_you_mean, summarize

# Names that a message lists.
_LISTED = 10


def what_to_type(place: str, module: Any, needed: Callable[[Any], Sequence[str]]) -> str:
    """Say which models there are in a file, and what to type for one.

    `needed` gives the names of the arguments that a class or function must be given.
    """
    own = _own(module)
    classes = _classes(module)
    models = [*classes, *(name for name, value in vars(module).items() if is_model(value))]
    functions = [name for name, value in own.items() if inspect.isfunction(value)]
    if not models:
        listed = summarize(functions, _LISTED) or "none"
        return f"it has no model; a function that makes one is given as {place}:name, and its functions are {listed}"
    first = models[0]
    kwargs = ", ".join(f'"{name}": ...' for name in (needed(own[first]) if first in classes else ()))
    option = f" --kwargs '{{{kwargs}}}'" if kwargs else ""
    typed = f"mixer-equiv verify {shlex.quote(f'{place}:{first}')}{option} --image 3x224x224"
    makers = [name for name in functions if _may_make_a_model(own[name], needed)]
    if len(models) == 1 and not makers:
        return f"its model is {first}: {typed}"
    named = f"name {'one of ' * (len(models) > 1)}{summarize(models, _LISTED)}"
    others = f", or a function that makes a model ({summarize(makers, _LISTED)})" if makers else ""
    return f"{named}{others}, as in: {typed}"


def no_such_name(place: str, module: Any, name: str) -> str:
    """Say that there is nothing of this name, what is nearest to it, and which classes there are."""
    classes = _classes(module) or _imported_classes(module) or _own_classes(module)
    functions = [key for key, value in _own(module).items() if inspect.isfunction(value)]
    near = did_you_mean(name, [*classes, *functions] or vars(module))
    listed = f"classes are {summarize(classes, _LISTED) or 'none'}"
    return f"{place} has no {name}{near} Its {listed}" if near else f"{place} has no {name}; its {listed}"


def _own(module: Any) -> dict[str, Any]:
    """What a module defines itself, by name."""
    return {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}


def _own_classes(module: Any) -> list[str]:
    return [name for name, value in _own(module).items() if inspect.isclass(value)]


def _classes(module: Any) -> list[str]:
    """Names of the models that a module defines; those of which its other classes are built come last."""
    models = [name for name in _own_classes(module) if is_model_class(getattr(module, name))]
    parts = _named_in_other_classes(module)
    return sorted(models, key=lambda name: name in parts)


def _imported_classes(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isclass(value) and is_model_class(value)]


def _named_in_other_classes(module: Any) -> set[str]:
    """Names that stand in the body of a class of the module, other than its own."""
    tree = ast.Module([], [])
    with contextlib.suppress(OSError, TypeError, SyntaxError):  # such as a module of C
        tree = ast.parse(inspect.getsource(module))
    return {
        node.id
        for made in tree.body
        if isinstance(made, ast.ClassDef)
        for statement in made.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id != made.name
    }


def _may_make_a_model(function: Any, needed: Callable[[Any], Sequence[str]]) -> bool:
    """Whether a function says that it returns a model, or says nothing and can be called without arguments."""
    returned = None
    with contextlib.suppress(Exception):  # names of annotations that are imported for type checkers alone
        returned = typing.get_type_hints(function).get("return", Any)
    if inspect.isclass(returned) and is_model_class(returned):
        return True
    return returned is Any and not needed(function) and not function.__name__.startswith("_")
