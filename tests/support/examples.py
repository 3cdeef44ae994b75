"""How many examples a property draws that is tried on many cases."""

from __future__ import annotations

from hypothesis import settings


def one_in(share: int) -> settings:
    """The profile's number of examples, divided among cases that are alike; at least four for each."""
    return settings(max_examples=max(4, settings().max_examples // share))
