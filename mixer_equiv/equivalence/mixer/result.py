"""`Found`: what a traced program was found to be, and where a run of it has the official parameters and stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.axes import reorder_axes
from mixer_equiv.equivalence.match.parameters import AssignedOperand, KnownAssignment
from mixer_equiv.equivalence.match.search import ProgramMatch, WholeMatch
from mixer_equiv.equivalence.mixer.reference import deviations_of
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.layouts import Constraint, Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Tap:
    """Where a stage of the official model is among a trace's values, and its elements in the stage's order."""

    number: int
    order: np.ndarray
    shape: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The stage, from the value that another run of the same program has there."""
        return array.reshape(-1)[self.order].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a run has an official parameter: the number of a value, whose axes follow in `order`.

    None for a parameter that the code does not have. `then` are kernel and bias of a second layer;
    `tokens` says which of the run's tokens are the official ones, where these are not in their order.
    """

    number: int | None
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    then: tuple[Source, Source] | None = None
    tokens: tuple[int, ...] | None = None

    @classmethod
    def of(cls, use: KnownAssignment, tokens: tuple[int, ...] | None = None) -> Source:
        then = None if use.second_layer is None else (cls.of(use.second_layer[0]), cls.of(use.second_layer[1]))
        if isinstance(use, AssignedOperand):
            return cls(use.operand.number, use.order, use.sizes, then, tokens)
        return cls(None, (0,), use.sizes, then, tokens)

    def array(self, trace: Trace, axes: tuple[str, ...], neutral: float) -> np.ndarray:
        """The parameter in the official order of its `axes`."""
        held = self._as_found(trace, neutral)
        if self.tokens is None or "tokens" not in axes:
            return held
        return held.take(self.tokens, axes.index("tokens"))

    def _as_found(self, trace: Trace, neutral: float) -> np.ndarray:
        if self.number is None:
            held = np.full(self.sizes, float(neutral))
        else:
            held = reorder_axes(trace.values[self.number].array, self.sizes, self.order)
        if self.then is not None:
            kernel, bias = (source._as_found(trace, 0.0) for source in self.then)
            held = held @ kernel + (bias if held.ndim == 1 else 0.0)
        return held


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What a traced program was found to be.

    `config` has the sizes, and the conventions that it was seen to compute throughout; None where
    `reasons` say why it is no Mixer. `sources` are the official parameters among the values of a
    run, None where some have no counterpart; `layout` their names, None also where they are computed
    from others. `constraints` are what the official model leaves free and this one does not.

    `deviations` are the steps that differ from the official model's, and with these `residual` is
    how far the replayed output was from the real one. Where the program ended before, `missing` is
    the first step that was not found; `known` are those with parameters that were. `unnamed` says why
    a Mixer has no layout, and `is_blind` tells where there was no output to follow. `notices` are
    what a user should know. `output` says which of the results the logits are, and `taps` where the
    stages are among the `num_values` values of a run on `batch` images. `depth` is the number of blocks,
    as far as it is known where there is no config; `draws` tells whether it drew
    random numbers.
    """

    config: MixerConfig | None
    layout: Layout | None
    sources: Mapping[str, Source] | None
    constraints: tuple[Constraint, ...]
    deviations: tuple[Deviation, ...]
    residual: float | None
    missing: str | None
    known: tuple[str, ...]
    reasons: tuple[str, ...]
    unnamed: str
    is_blind: bool
    notices: tuple[str, ...]
    output: str
    taps: Mapping[str, Tap]
    num_values: int
    batch: int
    depth: int
    draws: bool

    def but(self, reason: str) -> Found:
        """The same, no Mixer after all."""
        return dataclasses.replace(
            self, config=None, layout=None, sources=None, residual=None, reasons=(*self.reasons, reason)
        )

    def noting(self, *notices: str) -> Found:
        """The same, with more that a user should know."""
        return dataclasses.replace(self, notices=(*self.notices, *notices))

    @property
    def image_hw(self) -> tuple[int, int]:
        assert self.config is not None
        return self.config.image_hw

    @property
    def in_channels(self) -> int:
        assert self.config is not None
        return self.config.in_channels

    @property
    def is_whole(self) -> bool:
        return self.missing is None

    @property
    def is_settled(self) -> bool:
        return is_settled(self)

    @property
    def is_by_convention(self) -> bool:
        """Whether it deviates in conventions alone, and throughout, so that its config says all."""
        return self.config is not None and set(self.deviations) == set(deviations_of(self.config))


def is_settled(found: ProgramMatch | Found) -> bool:
    """Whether the output was reached without a step that is not known."""
    is_whole = found.is_whole if isinstance(found, Found) else isinstance(found, WholeMatch)
    return is_whole and all(deviation.kind != "unknown" for deviation in found.deviations)
