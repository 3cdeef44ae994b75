"""The colour of each verdict, for terminals and pages alike."""

from __future__ import annotations

from collections.abc import Mapping

from mixer_equiv.equivalence.report import Verdict

COLOURS: Mapping[Verdict, str] = {
    "equivalent": "green",
    "equivalent_under": "yellow",
    "different": "red",
    "inexpressible": "red",
    "nothing_compared": "red",
}
