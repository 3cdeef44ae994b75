"""`run_eagerly`: run torch modules as they are written, never compiled, and without importing torch's compiler."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
Result = TypeVar("Result")

_COMPILER = "torch._dynamo"


class _CompilerNeeded(BaseException):
    """The code that runs is about to import torch's compiler."""


class _CompilerBlocker:
    """A finder of modules that stops this thread where it is about to import torch's compiler."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == _COMPILER and threading.get_ident() == self.thread:
            raise _CompilerNeeded


def run_eagerly(run: Callable[P, Result]) -> Callable[P, Result]:
    """Decorate a function that runs a module, so that parts under `torch.compile` are run as they are written.

    Importing the compiler takes a second. Where it is not imported yet, nothing is compiled yet, and it is
    imported only for a module that asks for it on the way.
    """

    @functools.wraps(run)
    def eager(*args: P.args, **kwargs: P.kwargs) -> Result:
        if _COMPILER not in sys.modules:
            blocker = _CompilerBlocker()
            sys.meta_path.insert(0, blocker)
            try:
                return run(*args, **kwargs)
            except _CompilerNeeded:
                pass
            finally:
                sys.meta_path.remove(blocker)
        with torch.compiler.set_stance("force_eager"):
            return run(*args, **kwargs)

    return eager
