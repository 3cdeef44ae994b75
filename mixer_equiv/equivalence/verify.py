"""`verify`: are two Mixers the same function, and do two sets of weights say the same?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mixer_equiv.checkpoint import Checkpoint
from mixer_equiv.convert import convert
from mixer_equiv.equivalence.compare import Policy, differing, residual, size_differences
from mixer_equiv.equivalence.diagnose import convention_causes, ill_conditioned, weight_causes
from mixer_equiv.equivalence.programs import Taps
from mixer_equiv.equivalence.subject import Image, Subject, subjects
from mixer_equiv.equivalence.weights import give_weights, random_images, weights_holder
from mixer_equiv.errors import ConfigError, ConventionWarning
from mixer_equiv.report import Cause, Report, Side, Stage, Verdict

# No reader of the residual stream sees what this adds, since each begins with a LayerNorm.
UNOBSERVABLE = "MixerBlock_{i}/token_mixing/Dense_1/bias"
_PROGRAM_NAMES = {"flax": "Flax", "torch": "PyTorch", "reference": "NumPy"}


def verify(
    a: Any,
    b: Any = None,
    *,
    weights: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    image: Image | None = None,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    seed: int = 0,
    policy: Policy | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare two Mixers: as programs, or as holders of the same weights.

    A side is a checkpoint or the path of one, arrays by name, "flax", "torch" or "reference"
    (with a variant: "flax:B/16"), or a model of `mixer_equiv.models`. Without `b`, a checkpoint
    is compared with its port to the other framework, and a model with the official Flax one (the
    Flax one with torch).

    `weights` are "random" (drawn from `seed`, every parameter, the head included), "given" (each
    side's own, which must then be bit-identical too), or a checkpoint that both sides take. By
    default they are given if a side is a checkpoint, else random.
    `kwargs` are `MixerConfig` fields for "flax", "torch" and "reference". `image` is (channels,
    height, width), where shapes alone would make it a square grid. `images` are (batch, height,
    width, channels), standard normal if absent; with `labels` (batch,) accuracies are counted.
    `on_step` is told what begins.

    Everything is decided in float64 (see `Policy`), with the NumPy reference as third opinion;
    the user's modules, random state and precision settings are left as they were.
    Raises `MixerEquivError` for sides that cannot be read, or have no weights where they must.
    """
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be a whole number of at least 0")
    policy = policy or Policy()
    on_step("reading")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        donor = None if weights in (None, "given", "random") else weights_holder(weights)
        side_a, side_b = subjects(a, b, kwargs=kwargs, image=image, sizes=donor.config if donor else None)
    notes = [str(warning.message) for warning in caught]
    differences = size_differences(side_a.config, side_b.config)
    if differences:
        return _of_other_sizes(side_a, side_b, differences, policy)
    side_a, side_b, origin = give_weights(side_a, side_b, donor or weights, seed)
    batch = random_images(side_a.config, seed) if images is None else _checked(images, side_a)
    evidence = _gather(side_a, side_b, batch, on_step)
    shown = f"on {len(batch)} {'random images' if images is None else 'images'}"
    return _report(evidence, policy, origin, shown, notes, labels)


def _checked(images: np.ndarray, side: Subject) -> np.ndarray:
    expected = (*side.config.image_hw, side.config.in_channels)
    if images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise ConfigError(f"images have shape {images.shape}; expected (batch, {', '.join(map(str, expected))})")
    return images


@dataclasses.dataclass(frozen=True)
class _Evidence:
    """Both sides' taps on the same images: the oracle's, float64 and float32."""

    a: Subject
    b: Subject
    images: np.ndarray
    reference_a: Taps
    reference_b: Taps
    taps_a: Taps
    taps_b: Taps
    float32_a: Taps
    float32_b: Taps

    @property
    def last(self) -> str:
        """The stage that decides: the logits, or without a head the pooled features."""
        return list(self.reference_a)[-1]

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name,
                residual(self.taps_a[name], self.taps_b[name], self.reference_a[name]),
                residual(self.taps_a[name], self.reference_a[name]),
                residual(self.taps_b[name], self.reference_b[name]),
            )
            for name in self.reference_a
        )


def _gather(a: Subject, b: Subject, images: np.ndarray, on_step: Callable[[str], None]) -> _Evidence:
    def run(side: Subject, dtype: type, program: str | None = None) -> Taps:
        on_step(f"{_PROGRAM_NAMES[program or side.program]} in {np.dtype(dtype).name}")
        return side.run(images, dtype, program=program)

    reference_a = run(a, np.float64, "reference")
    same = a.config == b.config and not differing(a.weights, b.weights)
    reference_b = reference_a if same else run(b, np.float64, "reference")
    float64 = run(a, np.float64), run(b, np.float64)
    float32 = run(a, np.float32), run(b, np.float32)
    return _Evidence(a, b, images, reference_a, reference_b, *float64, *float32)


@dataclasses.dataclass(frozen=True)
class _Judgement:
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    causes: tuple[Cause, ...] = ()
    warnings: tuple[str, ...] = ()
    residual_without_causes: float | None = None


def _judge(evidence: _Evidence, policy: Policy, origin: str, decision: float) -> _Judgement:
    a, b, last = evidence.a, evidence.b, evidence.last
    outputs = [taps[last] for taps in (evidence.reference_a, evidence.taps_a, evidence.taps_b)]
    causes = tuple(weight_causes(a, b)) if origin == "given" else ()
    if not all(np.all(np.isfinite(output)) for output in outputs):
        return _Judgement("nothing_compared", (f"the {last} hold NaN or infinity, which equal nothing",), causes)
    if not _depends_on_images(outputs[0]):
        reason = (
            f"the {last} are the same whatever the image, as with a head that was never trained, so that comparing "
            "them compares nothing; verify with random weights"
        )
        return _Judgement("nothing_compared", (reason,), causes)
    if causes:
        return _Judgement("different", ("the two hold different weights",), causes)
    if decision <= policy.residual:
        return _Judgement("equivalent")
    float32 = max(
        residual(evidence.float32_a[last], evidence.float32_b[last]),
        residual(evidence.float32_a[last], evidence.reference_a[last]),
        residual(evidence.float32_b[last], evidence.reference_b[last]),
    )
    if np.isfinite(float32) and decision <= policy.scaling * float32:
        warning = (
            f"the residual is rounding, since in float32 it is {float32:.1e}: {ill_conditioned(evidence.reference_a)}"
        )
        return _Judgement("equivalent", warnings=(warning,))
    found, after = convention_causes(a, b, evidence.images, evidence.taps_a[last], policy.residual)
    if found:
        return _Judgement("equivalent_under", causes=tuple(found), residual_without_causes=after)
    return _Judgement("different", _against_reference(evidence, policy))


def _depends_on_images(output: np.ndarray) -> bool:
    return bool(np.any(output != output[0]) if len(output) > 1 else np.any(output))


def _against_reference(evidence: _Evidence, policy: Policy) -> tuple[str, ...]:
    """Which side is not the NumPy reference's function, and from which stage on."""
    reasons = []
    for side, which in ((evidence.a, "residual_a"), (evidence.b, "residual_b")):
        over = [stage.name for stage in evidence.stages() if getattr(stage, which) > policy.residual]
        if over:
            reasons.append(f"{side.name} departs from the NumPy reference at {over[0]}")
    return tuple(reasons)


def _report(
    evidence: _Evidence, policy: Policy, origin: str, images: str, notes: list[str], labels: np.ndarray | None
) -> Report:
    a, b, last = evidence.a, evidence.b, evidence.last
    stages = evidence.stages()
    decision = max(stages[-1].residual, stages[-1].residual_a, stages[-1].residual_b)
    judgement = _judge(evidence, policy, origin, decision)
    sides = (
        _side(a, b, origin, evidence.float32_a, evidence.reference_a, labels),
        _side(b, a, origin, evidence.float32_b, evidence.reference_b, labels),
    )
    over = [s.name for s in stages if max(s.residual, s.residual_a, s.residual_b) > policy.residual]
    apart = judgement.verdict in ("different", "equivalent_under")
    predictions = [
        taps["logits"].argmax(axis=-1) for taps in (evidence.float32_a, evidence.float32_b) if last == "logits"
    ]
    bindings = b.layout.bindings(b.config.num_blocks, head=b.config.num_classes > 0)
    return Report(
        verdict=judgement.verdict,
        residual=stages[-1].residual,
        decision=decision,
        threshold=policy.residual,
        stages=stages,
        first_divergence=over[0] if over and apart else None,
        causes=judgement.causes,
        residual_without_causes=judgement.residual_without_causes,
        reasons=judgement.reasons,
        mapping={canonical: binding.foreign for canonical, binding in bindings.items()},
        unobservable=tuple(UNOBSERVABLE.format(i=i) for i in range(a.config.num_blocks)),
        warnings=(*notes, *judgement.warnings, *_float32_warnings(sides, policy)),
        environment=_environment(),
        sides=sides,
        weights={"given": "bit by bit", "random": "random, shared"}.get(origin, f"from {origin}"),
        images=images,
        num_images=len(evidence.images),
        max_difference=float(np.max(np.abs(evidence.taps_a[last] - evidence.taps_b[last]))),
        prediction_flips=int(np.sum(predictions[0] != predictions[1])) if predictions else None,
    )


def _of_other_sizes(a: Subject, b: Subject, differences: list[str], policy: Policy) -> Report:
    return Report(
        verdict="different",
        threshold=policy.residual,
        reasons=(f"{a.name} and {b.name} are of different sizes, so nothing was run", *differences),
        environment=_environment(),
    )


def _side(
    side: Subject, other: Subject, origin: str, float32: Taps, reference: Taps, labels: np.ndarray | None
) -> Side:
    assert side.checkpoint is not None
    assert other.checkpoint is not None
    last = list(reference)[-1]
    trip = _round_trip(side.checkpoint, other.layout) if origin == "given" else (None, "")
    return Side(
        name=side.name,
        program=_PROGRAM_NAMES[side.program],
        num_parameters=side.checkpoint.num_parameters,
        weights=f"{len(side.checkpoint)} arrays, {', '.join(side.checkpoint.dtypes)}",
        round_trip=trip[0],
        round_trip_path=trip[1],
        float32_error=None if side.program == "reference" else residual(float32[last], reference[last]),
        accuracy=None if labels is None else float(np.mean(float32[last].argmax(axis=-1) == labels)),
    )


def _round_trip(checkpoint: Checkpoint, there: Any) -> tuple[bool, str]:
    """Whether the weights come back bit for bit from the other side's layout, and the way they went."""
    home = checkpoint.layout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConventionWarning)
        back = convert(convert(checkpoint, to=there), to=home)
    return not differing(checkpoint.arrays, back.arrays), f"{home.name} -> {there.name} -> {home.name}"


def _float32_warnings(sides: tuple[Side, Side], policy: Policy) -> list[str]:
    ours, theirs = (side.float32_error for side in sides)
    bound = policy.float32_ratio
    if not ours or not theirs or not np.isfinite([ours, theirs]).all() or 1 / bound <= ours / theirs <= bound:
        return []
    return [f"the float32 errors differ by more than {bound:g} times: {ours:.1e} and {theirs:.1e}"]


def _environment() -> dict[str, str]:
    frameworks = [name for name in ("numpy", "torch", "jax", "flax") if name in sys.modules]
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in frameworks},
        "precision": "float64 with x64 on, TF32 off",
    }
