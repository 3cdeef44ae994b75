"""`RunError`: what somebody else's model raises when it is run, as one message of ours. Start at `errors_named`."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator

from mixer_equiv.errors import MixerEquivError


class RunError(MixerEquivError):
    """A model that raised when it was run."""


@contextlib.contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Turn what the model of this name raises into a `RunError`."""
    try:
        yield
    except MixerEquivError:
        raise
    except (Exception, SystemExit) as error:
        what = " ".join(str(error).split())
        where = "" if what else f"nothing said, at {_last_line(error)}"
        raise RunError(f"{name} raised {type(error).__name__} when it was run: {what or where}") from error


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}, {frame.line}"


@contextlib.contextmanager
def asking_for_image(image: tuple[int, int, int]) -> Iterator[None]:
    """Add to a `RunError` the question whether the model takes images of (channels, height, width)."""
    try:
        yield
    except RunError as error:
        size = "x".join(map(str, image))
        raise RunError(
            f"{str(error).rstrip('.')}. It was run on images of {size} (channels x height x width): is image=, on the "
            "command line --image, right?"
        ) from error
