"""`Notice`: what a user should know of a model that was run, beside the question whether its function is another.

It is plain data at the bottom of `equivalence`. Code decides on the fault; the text is for people.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Notice:
    """A sentence, and the name of the catalogued fault that it tells of, empty where it is none."""

    text: str
    fault: str = ""
