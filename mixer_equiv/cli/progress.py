"""A progress bar for long commands."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Callable[[str], None]]:
    """Draw a bar on stderr at a terminal, and nothing in a pipe; call what is yielded as each step begins."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=steps)
        yield lambda step: progress.update(task, description=step, advance=1)


@contextlib.contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Send to stderr what models of the user's print as they run: stdout is for the result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
