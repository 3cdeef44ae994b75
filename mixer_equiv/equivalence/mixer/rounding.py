"""Constants of activations that are rounded so little that a search cannot tell the function from the official one.

What they change is left to the judge, who sees whether the outputs and gradients show it: such a deviation is kept
beside the others as `FoundMixer.rounded`. Start at `without_rounding`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from mixer_equiv.activations import RoundedActivation
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE


def is_all_but_official(deviation: Deviation) -> bool:
    """Whether the deviation is by a constant that is right but for its last digits."""
    return isinstance(deviation.found, RoundedActivation) and deviation.found.error <= TOLERANCE


def without_rounding(deviations: Iterable[Deviation]) -> tuple[Deviation, ...]:
    """The deviations with the constants of such activations as they are in the definition."""
    return tuple(kept for deviation in deviations for kept in _plain(deviation))


def _plain(deviation: Deviation) -> Iterator[Deviation]:
    """The deviation by the name of its activation; none where that is the expected one."""
    if not (isinstance(deviation.found, RoundedActivation) and is_all_but_official(deviation)):
        yield deviation
    elif deviation.found.name != deviation.expected:
        yield dataclasses.replace(deviation, found=deviation.found.name)


def with_rounding(deviations: Iterable[Deviation], rounded: Iterable[Deviation]) -> tuple[Deviation, ...]:
    """The deviations with the activations that are `rounded` in their places."""
    rounded = tuple(rounded)
    steps = {deviation.step for deviation in rounded}
    others = (d for d in deviations if not (d.step in steps and d.kind == "variant" and d.what == "activation"))
    return (*others, *rounded)
