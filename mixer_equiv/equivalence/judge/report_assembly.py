"""`report_of`: make the `Report` of evidence and judgement; and the reports where nothing was run."""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import convert
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.config import SizeDifference
from mixer_equiv.equivalence.judge.causes import causes_of
from mixer_equiv.equivalence.judge.decide import Judgement, without
from mixer_equiv.equivalence.judge.evidence import Evidence, Run
from mixer_equiv.equivalence.judge.stops import verdict_where_nothing_was_found
from mixer_equiv.equivalence.mixer.official_program import UNOBSERVABLE
from mixer_equiv.equivalence.mixer.result import NothingFound
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.policy import Policy, residual
from mixer_equiv.equivalence.record.precision import device, jax_device
from mixer_equiv.equivalence.report import Cause, Report, SideReport
from mixer_equiv.equivalence.sides.base import MixerSide, NotAMixer, WeightedSide
from mixer_equiv.equivalence.sides.runners import RUNNER_NAMES
from mixer_equiv.errors import ConventionWarning, NotFollowedError
from mixer_equiv.versions import versions


def sides_of(evidence: Evidence, origin: str, labels: np.ndarray | None) -> tuple[SideReport, SideReport]:
    """Describe both sides for the report; `origin` says where the weights are from."""
    a, b = evidence.a.side, evidence.b.side
    return _side(evidence.a, b, origin, labels), _side(evidence.b, a, origin, labels)


def report_of(
    evidence: Evidence,
    judgement: Judgement,
    sides: tuple[SideReport, SideReport],
    policy: Policy,
    *,
    weights: str,
    notes: list[Notice],
    **shown: Any,
) -> Report:
    """Report on two sides that were run; `shown` are further fields of the report."""
    a, b, last = evidence.a.side, evidence.b.side, evidence.last
    stages = evidence.stages()
    over = [s.name for s in stages if max(s.residual, s.residual_a, s.residual_b) > policy.residual]
    apart = judgement.verdict in ("different", "equivalent_under", "inexpressible")
    predictions = [run.low["logits"].argmax(axis=-1) for run in (evidence.a, evidence.b) if last == "logits"]
    named = next((side for side in (a, b) if side.side.is_foreign and side.side.is_named), b)
    bindings = named.layout.bindings(named.config.num_blocks, head=named.config.num_classes > 0)
    mapping = {name: binding.foreign for name, binding in bindings.items() if not binding.is_absent}
    specs = named.checkpoint.specs
    return Report(
        verdict=judgement.verdict,
        residual=stages[-1].residual,
        decision=max(stages[-1].residual, stages[-1].residual_a, stages[-1].residual_b),
        threshold=policy.residual,
        stages=stages,
        first_divergence=over[0] if over and apart else None,
        causes=judgement.causes,
        residual_without_causes=judgement.residual_without_causes,
        reasons=tuple(dict.fromkeys(judgement.reasons)),
        mapping=mapping,
        mapping_of=named.name,
        shapes={name: specs[foreign].shape for name, foreign in mapping.items() if foreign in specs},
        unobservable=tuple(UNOBSERVABLE.format(i=i) for i in range(a.config.num_blocks)),
        **_warning_fields([*notes, *judgement.notices, *_rms_notices(evidence.dtype, sides, policy)]),
        environment=environment(),
        sides=sides,
        names=(a.name, b.name),
        weights=weights,
        num_images=evidence.num_images,
        dtype=evidence.dtype,
        max_difference=float(np.max(np.abs(evidence.a.float64[last] - evidence.b.float64[last]))),
        prediction_flips=int(np.sum(predictions[0] != predictions[1])) if predictions else None,
        **shown,
    )


def not_found(side: NotAMixer, notes: list[Notice], policy: Policy) -> Report:
    """Report a model that is no Mixer, or one whose weights no official model can have."""
    found = side.found
    causes = causes_of(side)
    verdict = verdict_where_nothing_was_found(found, causes)
    return Report(
        verdict=verdict,
        threshold=policy.residual,
        first_divergence=None if verdict == "nothing_compared" else _first_divergence(found),
        causes=tuple(causes),
        residual_without_causes=without(causes, found.residual) if causes else None,
        reasons=found.reasons,
        **_warning_fields(notes),
        environment=environment(),
        names=(side.name,),
    )


def _first_divergence(found: NothingFound) -> str | None:
    """The first step that differs or was not found; cutting into patches is part of the stem."""
    step = found.deviations[0].step if found.deviations else found.missing
    return step and step.removesuffix("/cut")


def of_nothing(error: NotFollowedError, policy: Policy) -> Report:
    """Report a model that could not be recorded."""
    return Report(
        verdict="nothing_compared", threshold=policy.residual, reasons=(str(error),), environment=environment()
    )


def of_other_sizes(a: MixerSide, b: MixerSide, differences: list[SizeDifference], policy: Policy) -> Report:
    """Report on two sides of different sizes."""
    return Report(
        verdict="different",
        threshold=policy.residual,
        reasons=(f"{a.name} and {b.name} are of different sizes, so nothing was run", *map(str, differences)),
        environment=environment(),
        names=(a.name, b.name),
    )


def of_other_weights(a: WeightedSide, b: WeightedSide, causes: list[Cause], policy: Policy) -> Report:
    """Report on weights that differ, where nothing was run."""
    return Report(
        verdict="different",
        threshold=policy.residual,
        causes=tuple(causes),
        reasons=("the weights differ; nothing was run",),
        environment=environment(),
        names=(a.name, b.name),
    )


def _side(run: Run, other: WeightedSide, origin: str, labels: np.ndarray | None) -> SideReport:
    side, last = run.side, run.last
    # The reference computes another function than a model that deviates.
    low, reference = run.low[last], (run.float64 if side.side.is_foreign else run.reference)[last]
    trip = _round_trip(side.checkpoint, other.layout) if origin == "given" else (None, "")
    return SideReport(
        name=side.name,
        program=RUNNER_NAMES[side.side.runner],
        num_parameters=side.checkpoint.num_parameters,
        weights=f"{len(side.checkpoint)} arrays, {', '.join(side.checkpoint.dtypes)}",
        round_trip=trip[0],
        round_trip_path=trip[1],
        rms_error=None if side.side.runner == "reference" else residual(low, reference),
        accuracy=None if labels is None else float(np.mean(low.argmax(axis=-1) == labels)),
    )


def _round_trip(checkpoint: Checkpoint, there: Any) -> tuple[bool, str]:
    """Whether the weights come back from the other side's layout bit for bit, and the layouts on the way."""
    home = checkpoint.layout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConventionWarning)
        back = convert(convert(checkpoint, to=there), to=home)
    return not bit_differences(checkpoint.arrays, back.arrays), f"{home.name} -> {there.name} -> {home.name}"


def _rms_notices(dtype: str, sides: tuple[SideReport, SideReport], policy: Policy) -> list[Notice]:
    ours, theirs = (side.rms_error for side in sides)
    bound = policy.float32_ratio
    if not ours or not theirs or not np.isfinite([ours, theirs]).all() or 1 / bound <= ours / theirs <= bound:
        return []
    return [Notice(f"the {dtype} errors differ by more than {bound:g} times: {ours:.1e} and {theirs:.1e}")]


def _warning_fields(notices: Iterable[Notice]) -> dict[str, Any]:
    """The report's fields `warnings` and `notices`: all texts, and the ids of the notices that are in the catalogue."""
    notices = list(notices)
    ids = [notice.fault for notice in notices if notice.fault]
    return {"warnings": tuple(notice.text for notice in notices), "notices": tuple(dict.fromkeys(ids))}


def environment() -> dict[str, str]:
    """The versions, machine, precision and devices of this process."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **versions(),
        "precision": "float64 with x64 on, TF32 off",
        **({"torch device": device()} if "torch" in sys.modules else {}),
        **({"jax device": str(jax_device())} if "jax" in sys.modules else {}),
    }
