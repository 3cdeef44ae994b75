"""For tests: `assert_equivalent`, which fails with the report, and `compare`, which says what tolerance would do."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from types import FrameType
from typing import Any

from mixer_equiv.equivalence.faults.catalogue import CODE, verdict_of
from mixer_equiv.equivalence.report import Report
from mixer_equiv.equivalence.verify import verify
from mixer_equiv.errors import ConfigError, NotEquivalentError
from mixer_equiv.layouts import CONSTRAINTS

_DEFAULTS: dict[str, Any] = {}


def assert_equivalent(a: Any, b: Any = None, *, under: str | Collection[str] | None = None, **options: Any) -> Report:
    """Fail unless `verify(a, b, **options)` finds the two to be the same function, and show its report.

    `under` is the name of a cause that may differ, such as "activation", or are several: with them the
    two must be the same function once these are changed. Returns the report.
    Raises `NotEquivalentError`, an `AssertionError`, with code that shows the same by itself; `ConfigError`
    for the name of no such cause; and as `verify`.
    """
    __tracebackhide__ = True
    options = {**_DEFAULTS, **options}
    usual = options.pop("under", None)
    allowed = _causes((usual or ()) if under is None else under)
    report = verify(a, b, **options)
    named = {cause.name for cause in report.causes}
    explained = report.verdict == "equivalent_under" and named <= allowed
    if not (report.equivalent or explained):
        snippet = _snippet(a, b, options, sys._getframe(1))
        title = f"not equivalent under {', '.join(sorted(allowed))}" if allowed else "not equivalent"
        raise NotEquivalentError(f"{title}\n{report}", report=report, snippet=snippet)
    return report


def _causes(under: str | Collection[str]) -> set[str]:
    names = {under} if isinstance(under, str) else set(under)
    unknown = sorted(map(str, names - EXPLAINED))
    if unknown:
        raise ConfigError(f"under is {', '.join(unknown)}; it must be among {', '.join(sorted(EXPLAINED))}")
    return names


# What leaves two the same function once it is changed.
EXPLAINED = {name for name in (*CODE, *CONSTRAINTS) if verdict_of(name) == "equivalent_under"}


def _snippet(a: Any, b: Any, options: Mapping[str, Any], frame: FrameType) -> str:
    """The call of `verify` that was made for a call in `frame`."""
    from mixer_equiv.testing.reproducer import code_for_call  # only failures need it

    sides = {"a": a} if b is None else {"a": a, "b": b}
    return code_for_call("verify", {**sides, **options}, frame)


# What `assert_equivalent` takes beside the two sides.
OPTIONS = ("under", *list(inspect.signature(verify).parameters)[2:])


@contextlib.contextmanager
def defaults(**options: Any) -> Iterator[None]:
    """Inside, what `assert_equivalent` is not told, in whatever thread, is taken from these."""
    before = dict(_DEFAULTS)
    _DEFAULTS.update(options)
    try:
        yield
    finally:
        _DEFAULTS.clear()
        _DEFAULTS.update(before)
