"""From what was computed to a verdict, with its reasons and causes."""

from __future__ import annotations

import dataclasses

import numpy as np

from mixer_equiv.equivalence.compare import Policy, residual
from mixer_equiv.equivalence.diagnose import convention_causes, ill_conditioned
from mixer_equiv.equivalence.evidence import Evidence
from mixer_equiv.report import Cause, Verdict


@dataclasses.dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    warnings: tuple[str, ...] = ()
    residual_without_causes: float | None = None


def judge(evidence: Evidence, policy: Policy, causes: tuple[Cause, ...], decision: float) -> Judgement:
    """Weigh the evidence.

    `causes` are what the comparison of weights alone has found, `decision` is the largest float64
    residual of the last stage among the sides and the reference.
    """
    a, b, last = evidence.a, evidence.b, evidence.last
    outputs = [taps[last] for taps in (evidence.reference_a, evidence.taps_a, evidence.taps_b)]
    if not all(np.all(np.isfinite(output)) for output in outputs):
        return Judgement("nothing_compared", (f"the {last} hold NaN or infinity, which equal nothing",), causes)
    if not _depends_on_images(outputs[0]):
        reason = (
            f"the {last} are the same whatever the image, as with a head that was never trained, so that comparing "
            "them compares nothing; verify with random weights"
        )
        return Judgement("nothing_compared", (reason,), causes)
    if causes:
        return Judgement("different", (), causes)
    if decision <= policy.residual:
        return Judgement("equivalent")
    float32 = max(
        residual(evidence.float32_a[last], evidence.float32_b[last]),
        residual(evidence.float32_a[last], evidence.reference_a[last]),
        residual(evidence.float32_b[last], evidence.reference_b[last]),
    )
    if np.isfinite(float32) and decision <= policy.scaling * float32:
        warning = (
            f"the residual is rounding, since in float32 it is {float32:.1e}: {ill_conditioned(evidence.reference_a)}"
        )
        return Judgement("equivalent", warnings=(warning,))
    found, after = convention_causes(a, b, evidence.images, evidence.taps_a[last], policy.residual)
    if found:
        return Judgement("equivalent_under", causes=tuple(found), residual_without_causes=after)
    return Judgement("different", _against_reference(evidence, policy))


def _depends_on_images(output: np.ndarray) -> bool:
    return bool(np.any(output != output[0]) if len(output) > 1 else np.any(output))


def _against_reference(evidence: Evidence, policy: Policy) -> tuple[str, ...]:
    """Which side is not the NumPy reference's function, and from which stage on."""
    reasons = []
    for side, which in ((evidence.a, "residual_a"), (evidence.b, "residual_b")):
        over = [stage.name for stage in evidence.stages() if getattr(stage, which) > policy.residual]
        if over:
            reasons.append(f"{side.name} departs from the NumPy reference at {over[0]}")
    return tuple(reasons)
