"""`in_copied_context`: run a model where variables of its context (`contextvars`) are lost when it returns."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def in_copied_context(run: Callable[P, Result]) -> Callable[P, Result]:
    """Decorate a function that runs a model. A variable that was not set before cannot be unset in any other way."""

    @functools.wraps(run)
    def copied(*args: P.args, **kwargs: P.kwargs) -> Result:
        return contextvars.copy_context().run(run, *args, **kwargs)

    return copied
