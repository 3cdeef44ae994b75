"""The errors that this package raises, all subclasses of `MixerEquivError`, and helpers for their messages."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable
from typing import Any


class MixerEquivError(Exception):
    """Base of all errors raised on purpose. A message says what was found, what was expected, and what to do."""


class ConfigError(MixerEquivError, ValueError):
    """A `MixerConfig` that describes no Mixer, an option of no meaning, or sizes that contradict the arrays."""


class LayoutError(MixerEquivError, ValueError):
    """Arrays of no known layout or of several, an unknown layout name, or a layout whose table is wrong."""


class CheckpointError(MixerEquivError, OSError):
    """A file that cannot be read or written as a checkpoint, or as the graph of a recorded run."""


class MissingDependencyError(MixerEquivError, ImportError):
    """An optional dependency that is needed and cannot be imported."""


class ConversionError(MixerEquivError, ValueError):
    """Arrays that do not fill a layout exactly.

    One error lists all problems: `missing_keys`, `unexpected_keys` and `mismatched_keys`, under the names that
    the source has for them.
    """

    def __init__(
        self,
        message: str,
        *,
        missing_keys: Iterable[str] = (),
        unexpected_keys: Iterable[str] = (),
        mismatched_keys: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing_keys = tuple(missing_keys)
        self.unexpected_keys = tuple(unexpected_keys)
        self.mismatched_keys = tuple(mismatched_keys)


class InexpressibleError(ConversionError):
    """Weights of a function that the target's parameters, or the canonical ones, cannot express at any values.

    `reasons` has one sentence for each obstacle.
    """

    def __init__(self, message: str, *, reasons: Iterable[str], **keys: Iterable[str]) -> None:
        super().__init__(message, **keys)
        self.reasons = tuple(reasons)


class NotFollowedError(MixerEquivError):
    """A model that computes with what a recorded run, or the file of its graph, cannot hold."""


class NotEquivalentError(MixerEquivError, AssertionError):
    """The failure of `assert_equivalent`.

    `report` is the `Report` of `verify`. `snippet` is Python code that repeats the comparison by itself, shown as
    a note below the message.
    """

    def __init__(self, message: str, *, report: Any = None, snippet: str = "") -> None:
        super().__init__(message)
        self.report = report
        self.snippet = snippet
        if snippet:
            self.add_note(snippet)


class ReportError(MixerEquivError, ValueError):
    """Data that are no `Report`, or one of another version of the format."""


class ConventionWarning(UserWarning):
    """Code whose conventions differ from those that the weights were trained with."""


# Problems of one kind that an error lists; it counts the others.
MAX_LISTED = 12


def summarize(texts: Collection[str], shown: int = 4, separator: str = ", ") -> str:
    """The first `shown` of `texts`, and the number of the others, for a message: "a, b and 3 more"."""
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return separator.join(itertools.islice(texts, shown)) + more


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `word`: "; did you mean 'flax'?", or nothing if no `known` word is near."""
    spelt = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), spelt, 1)
    return f"; did you mean {spelt[near[0]]!r}?" if near else ""
