"""`naming_calls`: put the modules that are called into JAX's name stack, as linen does and nnx does not."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

# Classes belong to the process, so that only one thread may change them at a time.
_CLASSES = threading.RLock()


@contextlib.contextmanager
def naming_calls(modules: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a call of one of these modules is a named scope of JAX: "MlpMixer/blocks/3/mlp".

    `modules` are a model, whose path is "", and its parts by their paths, such as "blocks/3/mlp".
    """
    paths = {id(module): path for path, module in modules.items()}
    running: list[str] = []  # paths of the modules that are running, the innermost last

    def named(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def scoped(module: Any, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(module))
            if path is None or path in running[-1:]:  # a copy, as transforms make, or its class calls that of a parent
                return call(module, *args, **kwargs)
            outer = f"{running[-1]}/" if running else ""
            running.append(path)
            try:
                with jax.named_scope(path.removeprefix(outer) or type(module).__name__):
                    return call(module, *args, **kwargs)
            finally:
                running.pop()

        return scoped

    with _CLASSES, contextlib.ExitStack() as stack:
        for kind in {type(module): None for module in modules.values()}:
            owner = next((base for base in kind.__mro__ if callable(vars(base).get("__call__"))), None)
            if owner is not None:
                own = vars(owner)["__call__"]
                stack.callback(*((setattr, kind, "__call__", own) if owner is kind else (delattr, kind, "__call__")))
                kind.__call__ = named(own)
        yield
