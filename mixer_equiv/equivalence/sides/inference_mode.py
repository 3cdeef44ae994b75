"""The mode in which somebody else's model is run: arguments and fields that put it into inference.

Start at `mode_arguments`. What a torch or nnx module's own `eval()` does is left to it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from mixer_equiv.equivalence.notice import Notice

# Values of arguments, by name, that put a model into inference where the default is missing or the opposite.
INFERENCE_MODE = {
    **dict.fromkeys(("train", "training", "is_training", "is_train"), False),
    **dict.fromkeys(("deterministic", "eval", "inference"), True),
}


def mode_arguments(function: Callable[..., Any]) -> tuple[dict[str, bool], tuple[Notice, ...]]:
    """The arguments that must be given beside the images, and notices of them and of those left at their defaults."""
    try:
        others = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}, ()
    empty = inspect.Parameter.empty
    owner = getattr(function, "__self__", None)
    filled = {
        p.name: INFERENCE_MODE[p.name]
        for p in others
        if p.name in INFERENCE_MODE and (p.default is empty or _is_other_mode(p.name, p.default, owner))
    }
    options = [f"{p.name}={p.default!r}" for p in others if p.default is not empty and p.name not in filled]
    notices = []
    if filled:
        notices.append(Notice(f"it was called with {', '.join(f'{n}={value}' for n, value in filled.items())}"))
    if options:
        notices.append(Notice(f"it also takes {', '.join(options)}, left as given here", "option"))
    return filled, tuple(notices)


def _is_other_mode(name: str, default: Any, owner: Any) -> bool:
    """Whether a default is the opposite of inference, or leaves the mode open as a field of `owner` does too."""
    is_open = default is None and getattr(owner, name, None) is None
    return is_open or (type(default) is bool and default is not INFERENCE_MODE[name])


def with_inference_fields(module: Any) -> tuple[Any, tuple[Notice, ...]]:
    """A linen module whose own fields put it into inference, and a notice of those that were changed."""
    taken = inspect.signature(module.__call__).parameters
    held = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name in INFERENCE_MODE}
    changed = {
        name: INFERENCE_MODE[name]
        for name, value in held.items()
        if _is_other_mode(name, value, None) and not (value is None and name in taken)
    }
    if not changed:
        return module, ()
    shown = ", ".join(f"{name}={value}" for name, value in changed.items())
    return module.clone(**changed), (Notice(f"it was made anew with {shown}"),)
