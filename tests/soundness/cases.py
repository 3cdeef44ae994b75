"""The soundness suite's models with the verdicts that are right, written down before any of them was verified.

A table of cases is a module with `CASES`; `judge` asks `verify` for its verdict, and `parametrize` is what test modules
mark their tests with. `python -m tests.soundness` prints the tables.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest
import torch

from mixer_equiv import MixerEquivError, verify
from mixer_equiv.equivalence.report import Verdict
from tests.support import sizes

# Three blocks, so that the middle one is neither first nor last. All sizes differ.
CONFIG = sizes.SMALL.replace(num_blocks=3)
IMAGE = sizes.IMAGE

# "refused" is a `MixerEquivError`, which says why there is no report; "crashed" is any other exception.
Result = Verdict | Literal["refused", "crashed"]

DIFFERENT: tuple[Result, ...] = ("different",)
# Where something stands in the way that no official weights can do.
NOT_OFFICIAL: tuple[Result, ...] = ("different", "inexpressible")
# Where the official values are another convention's: "equivalent under" it is right only if the report names it.
CONVENTION: tuple[Result, ...] = ("different", "equivalent_under")
# Where tracing ends, so that it may also be said that nothing could be compared.
NOT_FOLLOWED: tuple[Result, ...] = ("different", "nothing_compared", "refused")
# Where the harness may either draw a neutral value, or leave it and name it.
NEUTRAL: tuple[Result, ...] = ("different", "inexpressible", "equivalent")
# The same, where a layer beside it can take it in.
FOLDABLE: tuple[Result, ...] = (*NEUTRAL, "equivalent_under")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and what is right to say of it.

    Attributes:
        name: Unique among all tables.
        make: Makes the model: of torch, linen or nnx.
        verdicts: Every verdict that is right, the best one first.
        why: Why it is right, in one sentence.
        causes: Names of causes that may be given; empty if any may.
        words: Fragments of which the printed report has at least one; empty if none is asked for.
        image: (channels, height, width) of the images that it takes.
    """

    name: str
    make: Callable[[], Any]
    verdicts: tuple[Result, ...]
    why: str
    causes: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    image: tuple[int, int, int] = IMAGE


@dataclasses.dataclass(frozen=True)
class Answer:
    """The verdict on a case, with the names of its causes and the report or error in full."""

    case: Case
    result: Result
    causes: tuple[str, ...]
    text: str

    @property
    def complaints(self) -> tuple[str, ...]:
        """All that is not as it was written down: empty for a right answer."""
        case = self.case
        wrong_causes = set(self.causes) - set(case.causes) if case.causes else set()
        lacks_words = case.words and not any(fragment in self.text for fragment in case.words)
        return (
            *([f"{self.result}, not {' or '.join(case.verdicts)}"] * (self.result not in case.verdicts)),
            *(f"blames {name}" for name in sorted(wrong_causes)),
            *([f"does not say {' or '.join(map(repr, case.words))}"] if lacks_words else ()),
        )

    @property
    def is_falsely_equivalent(self) -> bool:
        return self.result == "equivalent" and "equivalent" not in self.case.verdicts

    @property
    def is_falsely_different(self) -> bool:
        return self.result in ("different", "inexpressible") and self.result not in self.case.verdicts


def judge(case: Case) -> Answer:
    """Ask for the verdict. A model that raises is an answer too."""
    torch.manual_seed(0)
    try:
        report = verify(case.make(), image=case.image)
    except MixerEquivError as error:
        return Answer(case, "refused", (), str(error))
    except Exception as error:
        return Answer(case, "crashed", (), f"{type(error).__name__}: {error}")
    return Answer(case, report.verdict, tuple(cause.name for cause in report.causes), str(report))


def parametrize(cases: Iterable[Case], *, one_in: int) -> pytest.MarkDecorator:
    """Mark all but about one in so many as `soundness`, each by its own name: a new case changes no other."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(
                case, id=case.name, marks=() if zlib.crc32(case.name.encode()) % one_in == 0 else pytest.mark.soundness
            )
            for case in cases
        ],
    )
