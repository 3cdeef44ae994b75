"""The known causes of a difference, in the words of a report.

Deviations, conventions, constraints and weights become `Cause`s here; what they mean is decided elsewhere, on values.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from mixer_equiv.checkpoints.differences import PortFault
from mixer_equiv.config import CONVENTIONS
from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE, fault_of
from mixer_equiv.equivalence.judge.wording import places_in_words, steps_in_words
from mixer_equiv.equivalence.mixer.official_program import deviations_of, official_steps
from mixer_equiv.equivalence.mixer.result import FoundMixer
from mixer_equiv.equivalence.report import Cause, SideReport
from mixer_equiv.equivalence.sides.base import MixerSide, NotAMixer, WeightedSide
from mixer_equiv.equivalence.sides.runners import Stages
from mixer_equiv.errors import summarize
from mixer_equiv.layouts import CONSTRAINTS, OFFICIAL_CONVENTIONS, Constraint


def weight_causes(faults: Iterable[PortFault], a: WeightedSide, b: WeightedSide) -> list[Cause]:
    """Name what was done to the weights on the way from `a` to `b`."""
    causes = []
    for fault, arrays, detail in faults:
        found = f"{CATALOGUE[fault].words.format(detail)} in {b.name}"
        count = f"{len(arrays)} of {len(a.weights)} arrays"
        evidence = f"the first is {arrays[0]}, {_difference(a.weights[arrays[0]], b.weights[arrays[0]])}"
        causes.append(Cause(fault, "port", f"those of {a.name}", found, count, evidence))
    return causes


def _difference(x: np.ndarray, y: np.ndarray) -> str:
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.max(np.abs(wide_x - wide_y))
    dtypes = f"{x.dtype} against {y.dtype}"
    if np.array_equal(wide_x, wide_y, equal_nan=True):
        return f"the same values, {dtypes}" if x.dtype != y.dtype else "the same values in other bits"
    return f"max |difference| {gap:.1e}" + ("" if x.dtype == y.dtype else f", {dtypes}")


def round_trip_causes(sides: tuple[SideReport, SideReport]) -> list[Cause]:
    """Name each side whose weights did not come back from the other's layout as they were."""
    return [
        Cause("round_trip", "port", "the same bits", "others", side.round_trip_path, f"in {side.name}")
        for side in sides
        if side.round_trip is False
    ]


def convention_causes(a: WeightedSide, b: WeightedSide) -> list[Cause]:
    """Name the conventions in which the two are declared to differ."""
    return [_convention_cause(n, a, b) for n in CONVENTIONS if getattr(a.config, n) != getattr(b.config, n)]


def _convention_cause(name: str, a: WeightedSide, b: WeightedSide) -> Cause:
    odd, other = (a, b) if getattr(b.config, name) == getattr(OFFICIAL_CONVENTIONS, name) else (b, a)
    blocks = a.config.num_blocks
    count = {"activation": f"all {2 * blocks} MLPs", "layer_norm_eps": f"all {2 * blocks + 1} LayerNorms"}[name]
    return Cause(
        name, "code", str(getattr(other.config, name)), str(getattr(odd.config, name)), count, f"in {odd.name}"
    )


def deviation_causes(a: MixerSide, b: MixerSide, *, to_the_last_digit: bool = False) -> list[Cause]:
    """Name what one of the two does at some steps and the other does not; on demand the last digits of constants too.

    A foreign model deviates from the official one as it was found to, a model of ours by its conventions. Beside a
    foreign model, what ours does is what is expected.
    """
    side, other = (b, a) if b.is_foreign and not a.is_foreign else (a, b)
    own, others = (s.all_deviations if to_the_last_digit else s.deviations for s in (side, other))
    only_own = [deviation for deviation in own if deviation not in others]
    rest = [theirs for theirs in others if not any(_replaces(mine, theirs) for mine in own)]
    depth = side.config.num_blocks
    if side.is_foreign and not other.is_foreign:
        lacking = [dataclasses.replace(d, expected=d.found, found=d.expected) for d in rest]
        return list(_grouped([*only_own, *lacking], side.name, depth, others))
    return [*_grouped(only_own, side.name, depth, others), *_grouped(rest, other.name, depth, own)]


def _replaces(one: Deviation, other: Deviation) -> bool:
    """Whether `other`, of another model, cannot be seen beside `one`.

    They are of one setting of a step, or `one` has nothing left of the operation that `other` varies.
    """
    is_gone = one.step == other.step and one.kind in ("skip", "unknown") and other.kind == "variant"
    return is_gone or _is_rival(one, other)


def _is_rival(one: Deviation, other: Deviation) -> bool:
    """Whether two deviations, of two models, are of the same setting of the same step."""
    alike = one.what == other.what or (_is_activation(one) and _is_activation(other))
    return (one.step, one.kind) == (other.step, other.kind) and alike


def _is_activation(deviation: Deviation) -> bool:
    """Whether the deviation is another activation function. A step of activation has no other setting."""
    return deviation.kind == "variant" and CATALOGUE[fault_of(deviation).id].operation == "activate"


def causes_of(side: NotAMixer) -> list[Cause]:
    """Name what a model does otherwise than the official one, as far as it was followed."""
    found = side.found
    breaches = [
        Cause(b.fault, "code", b.expected, b.found, b.count, f"in {side.name}: {b.evidence}") for b in found.breaches
    ]
    return [
        *breaches,
        *_grouped(found.deviations, side.name, found.depth, ()),
        *constraint_causes(side.name, found.constraints),
    ]


def departures(found: FoundMixer) -> list[str]:
    """Describe what a model does that no convention of its layout has."""
    settled = set(deviations_of(found.config))
    rest = [deviation for deviation in found.deviations if deviation not in settled]
    return [_departure(deviation) for deviation in rest]


def _departure(deviation: Deviation) -> str:
    cause, place = fault_of(deviation).id, f" ({deviation.place})" if deviation.place is not None else ""
    found = f"{cause}, found {deviation.found}, at {deviation.step}{place}"
    return f"computes another function than the official model: {found}"


def _grouped(deviations: Iterable[Deviation], name: str, depth: int, others: Collection[Deviation]) -> Iterator[Cause]:
    """Put all steps that deviate in one way into one cause.

    The model called `name` has `depth` blocks; `others` are the deviations of the other side.
    """
    groups: dict[tuple[str, str, str], list[Deviation]] = {}
    for deviation in deviations:
        rival = next((other for other in others if _is_rival(deviation, other)), None)
        expected = deviation.expected if rival is None else rival.found
        expected = "nothing" if expected is None else str(expected)
        groups.setdefault((fault_of(deviation).id, str(deviation.found), expected), []).append(deviation)
    total = Counter(step.operation for step in official_steps(depth))
    for (cause, found, expected), members in groups.items():
        fault = CATALOGUE[cause]
        count, whole = len(members), total[fault.operation]
        of_all = f" of {whole}" if whole else ""
        where = "everywhere" if count == whole else steps_in_words(members, depth)
        named = [parameter for member in members for parameter in member.parameters]
        with_what = f", with {', '.join(named)}" if named and fault.verdict == "inexpressible" else ""
        evidence = f"in {name}: {where}{with_what}"
        noun = fault.noun if whole or count > 1 else fault.noun.removesuffix("s")
        yield Cause(cause, "code", str(expected), found, f"{count}{of_all} {noun}", evidence, places_in_words(members))


def constraint_causes(name: str, constraints: Collection[Constraint]) -> list[Cause]:
    """Name the parameters that the model called `name` shares, ties or lacks, and the official model leaves free."""
    causes = []
    for kind in CONSTRAINTS:
        all_of_kind = [str(constraint) for constraint in constraints if constraint.kind == kind]
        if all_of_kind:
            said = summarize(all_of_kind, 2, "; ")
            count = f"{len(all_of_kind)} parameter{'s'[: len(all_of_kind) > 1]}"
            causes.append(Cause(kind, "constraint", "free", said, count, f"in {name}; {_ONE_WAY}"))
    return causes


_ONE_WAY = "its weights convert to official ones, and these back where they coincide"


def ill_conditioned(reference: Stages) -> str:
    """Describe the LayerNorm whose rows have the largest mean^2 / variance."""
    streams = [name for name in reference if name.startswith(("stem", "MixerBlock"))]
    norms = [f"MixerBlock_{i}/LayerNorm_{j}" for i in range(len(streams) // 2) for j in (0, 1)]
    ratios = zip(
        map(mean_square_over_variance, (reference[name] for name in streams)),
        [*norms, "pre_head_layer_norm"],
        strict=True,
    )
    worst, where = max(ratios)
    return f"{where} sees rows with mean^2/variance up to {worst:.1e}, which cost digits, most in Flax's fast variance"


def mean_square_over_variance(x: np.ndarray) -> float:
    """The largest ratio of the mean's square to the variance over the rows of `x`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.square(x.mean(axis=-1)) / x.var(axis=-1), posinf=np.inf).max())
