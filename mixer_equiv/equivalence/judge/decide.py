"""`judge`: from the evidence to a verdict, with its reasons and causes."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from mixer_equiv.equivalence.faults.catalogue import verdict_of
from mixer_equiv.equivalence.judge.causes import constraint_causes, convention_causes, deviation_causes, ill_conditioned
from mixer_equiv.equivalence.judge.evidence import Evidence
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.policy import Policy, residual
from mixer_equiv.equivalence.report import Cause, Gradients, Training, Verdict
from mixer_equiv.equivalence.sides.base import MixerSide
from mixer_equiv.errors import summarize


@dataclasses.dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    notices: tuple[Notice, ...] = ()
    is_rounding: bool = False
    residual_without_causes: float | None = None


def judge(evidence: Evidence, policy: Policy, port_causes: tuple[Cause, ...]) -> Judgement:
    """Weigh the evidence: the weights first, then whether anything is finite, then the function.

    Conventions that are known to differ are aligned before the function is judged, so that a
    difference between them is never taken for rounding, nor rounding for a difference.
    `port_causes` are what the comparison of weights alone has found.
    """
    if port_causes:
        return Judgement("different", (), port_causes)
    broken = [run.side.name for run in (evidence.a, evidence.b) if not np.all(np.isfinite(run.float64[evidence.last]))]
    if broken:
        reason = f"the {evidence.last} of {' and '.join(broken)} hold NaN or infinity"
        return Judgement("nothing_compared" if len(broken) == 2 else "different", (reason,))
    float64, float32 = evidence.residuals()
    rating = policy.rate(float64, float32)
    causes = tuple(convention_causes(evidence.a.side, evidence.b.side))
    if rating == "apart":
        declared = [f"{c.name} differs as well: found {c.found}, expected {c.expected}, {c.evidence}" for c in causes]
        return Judgement("different", (*_against_reference(evidence, policy), *declared))
    conditioning = f"in float32 it is {float32:.1e}: {ill_conditioned(evidence.a.reference)}"
    if rating == "undecidable":
        return Judgement("nothing_compared", (f"the residual {float64:.1e} may be rounding, since {conditioning}",))
    notices = []
    if rating == "rounding":
        notices.append(Notice(f"the residual {float64:.1e} is rounding, since {conditioning}", "ill_conditioned"))
    shown = residual(evidence.a.float64[evidence.last], evidence.b.float64[evidence.last]) > policy.residual
    if evidence.variation < policy.variation and not (evidence.aligned and shown):
        return Judgement("nothing_compared", (_unmoved(evidence),))
    if evidence.aligned is None:
        return Judgement("equivalent", notices=tuple(notices), is_rounding=rating == "rounding")
    if not shown:
        text = "the sides are declared to differ as named, and these weights and images do not show it"
        notices.append(Notice(text))
    return Judgement("equivalent_under", (), causes, tuple(notices), rating == "rounding", float64)


def _unmoved(evidence: Evidence) -> str:
    hidden = evidence.a.side.config.hidden_dim
    if hidden < 3:
        return (
            f"hidden_dim is {hidden}, of which a LayerNorm leaves nothing but signs: the {evidence.last} hardly move "
            "with the image; verify with a hidden_dim of at least 3"
        )
    return (
        f"the {evidence.last} hardly move with the image (by {evidence.variation:.1e} of their size), as with a head "
        "that was never trained, so that comparing them compares nothing; verify with random weights"
    )


def explained(judgement: Judgement, a: MixerSide, b: MixerSide, port_causes: tuple[Cause, ...] = ()) -> Judgement:
    """Refine the judgement on models that were searched, by the steps at which they were seen to differ.

    `port_causes`, where the weights differ as well, stay beside them.
    """
    if judgement.verdict == "nothing_compared":
        return judgement
    causes = deviation_causes(a, b)
    constraints = [cause for side in (a, b) for cause in constraint_causes(side.name, side.constraints)]
    if not causes and not constraints:
        return judgement
    if judgement.verdict == "different" and (port_causes or not causes):
        return dataclasses.replace(judgement, causes=(*port_causes, *causes, *constraints))
    residuals = [side.replay_residual for side in (a, b) if side.replay_residual is not None]
    left = max(residuals, default=judgement.residual_without_causes)
    return judge_by_causes(judgement, [*causes, *constraints], left)


def judge_by_causes(judgement: Judgement, causes: Collection[Cause], residual: float | None) -> Judgement:
    """The worst verdict on a model that differs by these causes; `residual` is left with them changed."""
    verdicts = {verdict_of(cause.name) for cause in causes}
    worst = next(v for v in ("inexpressible", "different", "equivalent_under") if v in verdicts)
    beyond = tuple(f"{c.name}: {c.where}" for c in causes if verdict_of(c.name) == "inexpressible")
    after = without(causes, residual)
    return Judgement(worst, beyond, tuple(causes), judgement.notices, judgement.is_rounding, after)


def without(causes: Collection[Cause], residual: float | None) -> float | None:
    """The residual that is left with the causes changed; None if one is unknown, so that nothing can be changed."""
    return None if any(cause.name == "unknown" for cause in causes) else residual


def with_gradients(judgement: Judgement, gradients: Gradients | None, policy: Policy) -> Judgement:
    """Judge a model with the same outputs, or the same once causes are changed, and other gradients as different.

    It trains otherwise. As for outputs, a residual that float32 makes so much larger is rounding.
    """
    if gradients is None or gradients.residual <= gradients.threshold:
        return judgement
    if gradients.float32 is not None and policy.is_rounding(gradients.residual, gradients.float32):
        text = f"the gradients' {gradients.residual:.1e} is rounding, since in float32 it is {gradients.float32:.1e}"
        return dataclasses.replace(judgement, notices=(*judgement.notices, Notice(text)), is_rounding=True)
    if judgement.verdict in ("equivalent", "equivalent_under") and not judgement.is_rounding:
        outputs = "the outputs" if judgement.verdict == "equivalent" else "the outputs, with the causes changed,"
        reason = f"the gradients differ by {gradients.residual:.1e}, most at {gradients.worst}, and {outputs} do not"
        if gradients.nonlinear:
            of = summarize(gradients.nonlinear, 3)
            reason += (
                f"; those of {of} are not linear in the gradient of the loss, as where they are clipped on the way"
            )
        return dataclasses.replace(judgement, verdict="different", reasons=(*judgement.reasons, reason))
    return judgement


def trained_apart(judgement: Judgement, training: tuple[Training, ...]) -> Judgement:
    """Judge a model as different that trains otherwise, whatever its gradients at the start."""
    over = [trained for trained in training if not trained.residual <= trained.threshold]
    if not over or judgement.verdict != "equivalent" or judgement.is_rounding:
        return judgement
    reasons = [
        f"after {trained.label} parameters differ by {trained.residual:.1e}, "
        f"most {trained.worst}, where at most {trained.threshold:g} is rounding"
        for trained in over
    ]
    return dataclasses.replace(judgement, verdict="different", reasons=(*judgement.reasons, *reasons))


def _against_reference(evidence: Evidence, policy: Policy) -> tuple[str, ...]:
    """Name the sides that depart from the NumPy reference, and the first stage at which they do."""
    reasons = []
    for run, which in ((evidence.a, "residual_a"), (evidence.b, "residual_b")):
        over = [stage.name for stage in evidence.stages() if getattr(stage, which) > policy.residual]
        if over:
            reasons.append(f"{run.side.name} departs from the NumPy reference at {over[0]}")
    return tuple(reasons)
