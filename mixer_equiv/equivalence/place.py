"""`Place`: the line of somebody's code that carries out an operation, in the words of its author.

It is plain data at the bottom of `equivalence`; the recorders find places, and reports show them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of code, and the module of the model that was running.

    Attributes:
        file: The path of the file as its author would write it; empty where only a framework's code was running.
        line: The number of the line, from 1 on; 0 without a file.
        text: The line, without its indentation; empty where the source cannot be read.
        module: The path of the module in the model, such as "blocks.3.mlp"; empty for the model itself.
    """

    file: str
    line: int
    text: str
    module: str

    @property
    def where(self) -> str:
        """The file and the line, such as "mymixer.py:41"."""
        return f"{self.file}:{self.line}" if self.file else ""

    def __str__(self) -> str:
        return " in ".join(part for part in (self.where, self.module) if part)


# Makes a place from what was remembered of it.
FindPlace = Callable[[], Place | None]


def nowhere() -> None:
    """No place: the input has none."""
