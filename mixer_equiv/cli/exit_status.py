"""How a command ends: its exit status, errors as messages, and signals."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import typer

from mixer_equiv.errors import InexpressibleError, MixerEquivError

EXIT_STATUS = {
    "equivalent": 0,
    "equivalent_under": 1,
    "different": 1,
    "inexpressible": 3,
    "nothing_compared": 3,
}
BAD_INPUT = 2


class _Stopped(BaseException):
    """A signal told the process to end. It is no `SystemExit`, which is an error where a user's model raises it."""


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turn a `MixerEquivError`, or a lack of memory, into one message on stderr and an exit status."""
    try:
        with _stopped_by_signals():
            yield
    except _Stopped as stopped:
        raise SystemExit(*stopped.args) from None
    except (MixerEquivError, MemoryError) as error:
        from rich.console import Console

        what = f"there is not enough memory ({error})" if isinstance(error, MemoryError) else str(error)
        Console(stderr=True, soft_wrap=True).print("error:", what, style="red", highlight=False, markup=False)
        status = EXIT_STATUS["inexpressible"] if isinstance(error, InexpressibleError) else BAD_INPUT
        raise typer.Exit(status) from error


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does, so that temporary files go; ignored ones stay ignored."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _: object) -> None:
    raise _Stopped(128 + number)
