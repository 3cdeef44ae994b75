"""The results of a search for a Mixer: a `FoundMixer`, or `NothingFound`.

A search for the correspondence of any two models would end in a third class beside these.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.axes import reorder_axes
from mixer_equiv.equivalence.match.derived_operand import DerivedOperand
from mixer_equiv.equivalence.match.parameter_search import AssignedOperand, KnownAssignment
from mixer_equiv.equivalence.mixer.official_program import deviations_of
from mixer_equiv.equivalence.mixer.rounding import with_rounding
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.errors import summarize
from mixer_equiv.layouts import Constraint, Layout


@dataclasses.dataclass(frozen=True, eq=False)
class StagePlace:
    """The place of a stage of the official model: the `number` of a value in a trace.

    `order` holds, for each element of the stage, its place in that value; `shape` is the stage's.
    """

    number: int
    order: np.ndarray
    shape: tuple[int, ...]

    def of(self, array: np.ndarray) -> np.ndarray:
        """The stage, from the value that another run of the same program has there."""
        return array.reshape(-1)[self.order].reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class ParameterPlace:
    """The place of an official parameter in a run: the numbers of values of which `make` gives its array.

    There are none for a parameter that the code does not have. The array's axes follow in `order`. `then` are the
    sources of kernel and bias of a second layer; `tokens` lists the run's tokens in the official order, where that is
    another one.
    """

    numbers: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    then: tuple[ParameterPlace, ParameterPlace] | None = None
    tokens: tuple[int, ...] | None = None
    make: Callable[..., np.ndarray] = lambda array: array

    @classmethod
    def of(cls, assigned: KnownAssignment, tokens: tuple[int, ...] | None = None) -> ParameterPlace:
        second = assigned.second_layer
        then = None if second is None else (cls.of(second[0]), cls.of(second[1]))
        if isinstance(assigned, AssignedOperand):
            operand = assigned.operand
            if isinstance(operand, DerivedOperand):
                return cls(operand.inputs, assigned.order, assigned.sizes, then, tokens, operand.make)
            return cls((operand.number,), assigned.order, assigned.sizes, then, tokens)
        return cls((), (0,), assigned.sizes, then, tokens)

    def array(self, trace: Trace, axes: tuple[str, ...], neutral: float) -> np.ndarray:
        """The parameter in the official order of its `axes`."""
        held = self._as_found(trace, neutral)
        if self.tokens is None or "tokens" not in axes:
            return held
        return held.take(self.tokens, axes.index("tokens"))

    def _as_found(self, trace: Trace, neutral: float) -> np.ndarray:
        if self.numbers:
            made = self.make(*(trace.values[number].array for number in self.numbers))
            held = reorder_axes(made, self.sizes, self.order)
        else:
            held = np.full(self.sizes, float(neutral))
        if self.then is not None:
            kernel, bias = (source._as_found(trace, 0.0) for source in self.then)
            held = held @ kernel + (bias if held.ndim == 1 else 0.0)
        return held


@dataclasses.dataclass(frozen=True)
class Unnamed:
    """Stands for the layout of a Mixer whose official parameters are not its own, with the reason."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Breach:
    """A way in which a model is not one function of each image, whatever program was found in it.

    `fault` is its id in the catalogue. `found` and `expected` are the two sides of the cause, `count` tells how often
    it shows, and `evidence` where and how.
    """

    fault: str
    found: str
    expected: str
    count: str
    evidence: str

    def also(self, places: Collection[str]) -> Breach:
        """The same, with places of the model's code that may be its reason."""
        return dataclasses.replace(self, evidence=f"{self.evidence}; {summarize(places, 3)}") if places else self


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Searched(abc.ABC):
    """The observations of a search, whatever it ended in.

    `deviations` are the steps that differ from the official model's; `known` are the steps with parameters that were
    found, `knows_layer_norm` tells whether a LayerNorm is among them, and `depth` is the number of blocks.
    `constraints` are conditions on the official weights. `notices` are for the user.
    `output` is the path of the result that was followed, empty where none was reached. The search ran on `batch`
    images; `draws` tells whether the model drew random numbers, and `decisions` are the places at which numbers of the
    images decided, or could, what was run; `weight_decisions` those at which numbers of weights alone did. `constants`
    are tensors of the model, no parameters, that met the images. `exits` are the places at which arrays left the
    framework.
    """

    deviations: tuple[Deviation, ...]
    known: tuple[str, ...]
    knows_layer_norm: bool
    depth: int
    constraints: tuple[Constraint, ...]
    notices: tuple[Notice, ...]
    output: str
    batch: int
    draws: bool
    decisions: tuple[str, ...]
    weight_decisions: tuple[str, ...]
    constants: tuple[str, ...]
    exits: tuple[str, ...]

    @property
    def is_settled(self) -> bool:
        """Whether the output was reached without a step that is not known."""
        return self.reached_output and all(deviation.kind != "unknown" for deviation in self.deviations)

    @property
    @abc.abstractmethod
    def reached_output(self) -> bool:
        """Whether the official program was followed to the output."""

    def _observations(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Searched)}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FoundMixer(Searched):
    """A Mixer that was found in a trace.

    `config` has the sizes, and those conventions that it computes throughout. `layout` names its parameters.
    `sources` are the official parameters among the values of a run, of the steps hashed as `path`; `stages` are the
    places of the official stages among them. `residual` is that of its output against the official program with the
    deviations, and with the activations that are `rounded`: those whose constants differ in the last digits alone.
    `idle` are operations that changed nothing, `narrow_dtypes` the floats for which its code asks.
    """

    config: MixerConfig
    layout: Layout | Unnamed
    sources: Mapping[str, ParameterPlace]
    residual: float | None
    stages: Mapping[str, StagePlace]
    path: int
    idle: tuple[str, ...]
    narrow_dtypes: tuple[str, ...]
    rounded: tuple[Deviation, ...] = ()

    @property
    def all_deviations(self) -> tuple[Deviation, ...]:
        """The deviations to the last digit of constants."""
        return with_rounding(self.deviations, self.rounded)

    @property
    def reached_output(self) -> bool:
        return True

    @property
    def is_by_convention(self) -> bool:
        """Whether conventions that hold throughout are its only deviations, so that its config has them all."""
        return set(self.deviations) == set(deviations_of(self.config))

    def noting(self, *notices: Notice) -> FoundMixer:
        """The same result with more notices."""
        return dataclasses.replace(self, notices=(*self.notices, *notices))

    def refused(self, reason: str, *breaches: Breach) -> NothingFound:
        """Turn the result into `NothingFound`, for this reason and these breaches."""
        return NothingFound(
            **self._observations(), reasons=(reason,), residual=None, missing=None, is_blind=False, breaches=breaches
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NothingFound(Searched):
    """No Mixer, or one whose weights no official model can have, for these `reasons`.

    Where the official program was followed to the output, `missing` is None and `residual` is how far the replayed
    output was from the real one; else `missing` is the first step that was not found. `is_blind` tells that there was
    no output to follow. `is_of_other_family` tells that names of parameters are those of another kind of model, and
    `is_refused` that its outputs alone show that it is no Mixer, of which `breaches` say how.
    """

    reasons: tuple[str, ...]
    residual: float | None
    missing: str | None
    is_blind: bool
    is_of_other_family: bool = False
    is_refused: bool = False
    breaches: tuple[Breach, ...] = ()

    @property
    def reached_output(self) -> bool:
        return self.missing is None

    def noting(self, *notices: Notice) -> NothingFound:
        """The same result with more notices."""
        return dataclasses.replace(self, notices=(*self.notices, *notices))

    def refused(self, reason: str, *breaches: Breach) -> NothingFound:
        """The same result with one more reason, and more breaches."""
        return dataclasses.replace(
            self,
            residual=None,
            reasons=(*self.reasons, reason),
            breaches=(*self.breaches, *breaches),
            is_refused=True,
        )


Found = FoundMixer | NothingFound
