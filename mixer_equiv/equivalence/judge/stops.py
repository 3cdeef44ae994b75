"""`verdict_where_nothing_was_found`: what it shows that a search found no Mixer in a model.

A search stops where no known way of taking the next step gives a value of the model. That alone shows nothing: the
model may take the step in a way that is not followed. So a stop is `different` only on evidence in the values, and
`inexpressible` only where the model is seen to be of another kind.
"""

from __future__ import annotations

from collections.abc import Collection

from mixer_equiv.equivalence.faults.catalogue import verdict_of
from mixer_equiv.equivalence.mixer.result import NothingFound
from mixer_equiv.equivalence.report import Cause, Verdict


def verdict_where_nothing_was_found(found: NothingFound, causes: Collection[Cause]) -> Verdict:
    """The verdict on a model in which no Mixer was found, with these causes: that of the first line that applies."""
    lines: tuple[tuple[bool, Verdict], ...] = (
        (found.is_blind, "nothing_compared"),  # there is no output to compare
        (bool(found.breaches), "different"),  # runs of it differ as those of no function of each image do
        (any(verdict_of(cause.name) == "inexpressible" for cause in causes), "inexpressible"),
        (found.reached_output, "different"),  # the whole was followed, and is not the official function
        (found.is_of_other_family or not found.knows_layer_norm, "inexpressible"),  # it does not begin as a Mixer does
        (found.is_refused, "different"),  # its outputs show that it is no function of each image
        (_has_all_blocks(found), "different"),  # from the features of a Mixer it makes another output
        (bool(found.deviations), "different"),  # another step was seen, and confirmed by the step after it
    )
    return next((verdict for applies, verdict in lines if applies), "nothing_compared")


def _has_all_blocks(found: NothingFound) -> bool:
    """Whether the step that was not found is behind the blocks."""
    return found.missing is not None and not found.missing.startswith("MixerBlock_")
