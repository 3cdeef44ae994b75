"""Labels at the ends of lines, in place of a legend; none covers another. Start reading at `label_lines`.

Takes a matplotlib axis and knows no benchmark.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

FONT_SIZE = 8.5
WIDTH = 1.3  # of a label and what leads to it, in inches
_POINTS_OF_A_LINE, _POINTS_BETWEEN = 1.2 * FONT_SIZE, 4.0
_CHARACTERS = 17
_GAP = 0.17  # from the axis to its labels, in inches


@dataclasses.dataclass(frozen=True)
class Label:
    """The text of a label, wrapped, its colour, and the end of its line."""

    text: str
    colour: str
    x: float
    y: float

    @property
    def points(self) -> float:
        """The height, with the space to the next label."""
        return _POINTS_OF_A_LINE * (self.text.count("\n") + 1) + _POINTS_BETWEEN


def wrap_names(names: Sequence[str]) -> str:
    """Join names with commas, on lines that fit beside a panel.

    A short name stays on one line, and a word that is longer than a line breaks behind an underscore.
    """
    kept = [name.replace(" ", "\N{NO-BREAK SPACE}") if len(name) < _CHARACTERS else name for name in names]
    words = [word.replace("_", "_ ") if len(word) > _CHARACTERS else word for word in ", ".join(kept).split(" ")]
    return textwrap.fill(" ".join(words), _CHARACTERS).replace("_ ", "_").replace("\N{NO-BREAK SPACE}", " ")


def height_of(labels: Sequence[Label]) -> float:
    """The inches that labels need above each other."""
    return sum(label.points for label in labels) / 72


def label_lines(axis: Any, labels: Sequence[Label], size: tuple[float, float]) -> None:
    """Write labels to the right of an axis that is `size` inches wide and high, each as near to its end as can be.

    The limits of the axis must be set before, and its scale down be linear.
    """
    labels = sorted(labels, key=lambda label: label.y)
    width, height = size
    low, high = axis.get_ylim()
    wanted = [(label.y - low) / (high - low) * height * 72 for label in labels]
    places = spread(wanted, [label.points for label in labels], height * 72)
    for label, place in zip(labels, places, strict=True):
        axis.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(1 + _GAP / width, place / (height * 72)),
            textcoords="axes fraction",
            color=label.colour,
            fontsize=FONT_SIZE,
            linespacing=1.1,
            horizontalalignment="left",
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.8,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 4,
            },
        )


def spread(wanted: Sequence[float], heights: Sequence[float], available: float) -> list[float]:
    """Compute the places, between 0 and `available`, that are nearest to the `wanted` ones without an overlap.

    All are centres, in rising order. The squares of the distances have the least sum there is; where `heights`
    together exceed `available`, the last ones stand above it.
    """
    starts = [sum(heights[:i]) + height / 2 for i, height in enumerate(heights)]  # packed from 0 on
    pools: list[list[float]] = []  # neighbours that touch; all of a pool are moved by the mean of its members' moves
    for place, start in zip(wanted, starts, strict=True):
        pools.append([place - start])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    most = max(0.0, available - sum(heights))
    moves = [min(max(_mean(pool), 0.0), most) for pool in pools for _ in pool]
    return [start + move for start, move in zip(starts, moves, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
