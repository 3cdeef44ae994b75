"""The errors this package raises; every one is a `MixerEquivError`. And `some`, for what they say."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any


class MixerEquivError(Exception):
    """Base of all errors raised on purpose: the message says what was found, expected and to do."""


class ConfigError(MixerEquivError, ValueError):
    """A `MixerConfig` that describes no Mixer, or sizes that contradict the arrays."""


class LayoutError(MixerEquivError, ValueError):
    """Arrays of no known layout, of several, or a layout name nobody registered."""


class CheckpointError(MixerEquivError, OSError):
    """A file that cannot be read or written as a checkpoint."""


class MissingDependencyError(MixerEquivError, ImportError):
    """An optional framework is needed and not installed."""


class ConversionError(MixerEquivError, ValueError):
    """Arrays that do not fill a layout exactly.

    `missing_keys`, `unexpected_keys` and `mismatched_keys` list what is wrong, in the names of the
    source; one error carries all of it.
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
    """Weights that no values of the target's parameters give, or that the canonical form has no place for.

    `reasons` says why, one sentence each.
    """

    def __init__(self, message: str, *, reasons: Iterable[str], **keys: Iterable[str]) -> None:
        super().__init__(message, **keys)
        self.reasons = tuple(reasons)


class NotEquivalentError(MixerEquivError, AssertionError):
    """What `assert_equivalent` raises.

    `report` is what `verify` found. `snippet` is Python code that finds it again by itself, shown as a
    note below the message.
    """

    def __init__(self, message: str, *, report: Any = None, snippet: str = "") -> None:
        super().__init__(message)
        self.report = report
        self.snippet = snippet
        if snippet:
            self.add_note(snippet)


class ConventionWarning(UserWarning):
    """The target code computes something else than what the weights were trained with."""


# Problems of one kind that an error spells out.
MAX_LISTED = 12


def summarize(texts: Collection[str], shown: int = 4, joint: str = ", ") -> str:
    """The first few in a row, and how many more there are, for messages."""
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return joint.join(itertools.islice(texts, shown)) + more
