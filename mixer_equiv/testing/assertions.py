"""`assert_equivalent`: `verify` as an assertion, whose failure shows the report and code that repeats it.

`tolerance` compares arrays, without running models.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from types import FrameType
from typing import Any

from mixer_equiv.equivalence.faults.catalogue import changeable
from mixer_equiv.equivalence.report import Report
from mixer_equiv.equivalence.verify import verify
from mixer_equiv.errors import NotEquivalentError

_DEFAULTS: dict[str, Any] = {}


def assert_equivalent(a: Any, b: Any = None, *, under: str | Collection[str] | None = None, **options: Any) -> Report:
    """Fail, showing the report, unless `verify(a, b, **options)` finds the two to be the same function.

    `under` names one or several causes that may differ, such as "activation": the two must then be the
    same function once these are changed. Returns the report.
    Raises `NotEquivalentError`, an `AssertionError`, with code that repeats the comparison by itself; `ConfigError`
    for an unknown cause; and the errors of `verify`.
    """
    __tracebackhide__ = True
    options = {**_DEFAULTS, **options}
    usual = options.pop("under", None)
    allowed = changeable((usual or ()) if under is None else under)
    report = verify(a, b, **options)
    if not report.is_equivalent_under(allowed):
        snippet = _snippet(a, b, options, sys._getframe(1))
        title = f"not equivalent under {', '.join(sorted(allowed))}" if allowed else "not equivalent"
        raise NotEquivalentError(f"{title}\n{report}", report=report, snippet=snippet)
    return report


def _snippet(a: Any, b: Any, options: Mapping[str, Any], frame: FrameType) -> str:
    """Code for the call of `verify` behind the call in `frame`."""
    from mixer_equiv.testing.reproducer import code_for_call  # only failures need it

    sides = {"a": a} if b is None else {"a": a, "b": b}
    return code_for_call("verify", {**sides, **options}, frame)


# The options of `assert_equivalent`.
OPTIONS = ("under", *list(inspect.signature(verify).parameters)[2:])


@contextlib.contextmanager
def defaults(**options: Any) -> Iterator[None]:
    """Use these options, in all threads, wherever a call of `assert_equivalent` does not give them."""
    before = dict(_DEFAULTS)
    _DEFAULTS.update(options)
    try:
        yield
    finally:
        _DEFAULTS.clear()
        _DEFAULTS.update(before)
