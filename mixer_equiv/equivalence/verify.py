"""`verify`: are two Mixers the same function, and do two sets of weights say the same?"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays import to_numpy
from mixer_equiv.checkpoint import Checkpoint
from mixer_equiv.convert import convert
from mixer_equiv.equivalence.compare import CONVENTIONS, Policy, differing, residual, size_differences
from mixer_equiv.equivalence.diagnose import constraint_causes, deviation_causes, round_trip_causes, weight_causes
from mixer_equiv.equivalence.evidence import Evidence, Run, gather
from mixer_equiv.equivalence.faults import verdict_of
from mixer_equiv.equivalence.gradients import compare_gradients
from mixer_equiv.equivalence.judge import explained, judge, with_gradients
from mixer_equiv.equivalence.programs import PROGRAM_NAMES
from mixer_equiv.equivalence.subject import Image, Subject, subjects
from mixer_equiv.equivalence.weights import give_weights, random_images, weights_holder
from mixer_equiv.errors import ConfigError, ConventionWarning, MixerEquivError
from mixer_equiv.layouts import OFFICIAL
from mixer_equiv.report import Gradients, Report, Side

# A model of somebody else's is run on few images, because every value of it is recorded.
IMAGES_FOR_CANDIDATES = 4

# No reader of the residual stream sees what this adds, since each begins with a LayerNorm.
UNOBSERVABLE = "MixerBlock_{i}/token_mixing/Dense_1/bias"


def verify(
    a: Any,
    b: Any = None,
    *,
    weights: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    image: Image | None = None,
    images: Any = None,
    labels: Any = None,
    allow_missing: Collection[str] = (),
    gradients: bool | None = None,
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
    `allow_missing` are globs such as "head/*", of parameters that checkpoints may lack.
    `gradients` says whether these are compared as well, on one image; by default they are for
    programs with random weights. `on_step` is told what begins.

    Everything is decided in float64 (see `Policy`), with the NumPy reference as third opinion;
    the user's modules, random state and precision settings are left as they were.
    Raises `MixerEquivError` for sides that cannot be read, or have no weights where they must.
    """
    if a is None:
        raise MixerEquivError("there is nothing to verify: a is None")
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number of at least 0")
    policy = policy or Policy()
    on_step("reading")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        donor = None if weights in (None, "given", "random") else weights_holder(weights)
        sizes = donor.config if donor else None
        side_a, side_b = subjects(a, b, kwargs=kwargs, image=image, sizes=sizes, allow_missing=allow_missing, seed=seed)
    notes = [str(warning.message) for warning in caught]
    searched = [side for side in (side_a, side_b) if side.found is not None]
    notes += [notice for side in searched if side.found for notice in side.found.notices]
    lost = [side for side in searched if side.found is not None and side.found.sources is None]
    if lost:
        return _not_found(lost[0], notes, policy)
    differences = size_differences(side_a.config, side_b.config)
    if differences:
        return _of_other_sizes(side_a, side_b, differences, policy)
    side_a, side_b, origin = give_weights(side_a, side_b, donor or weights, seed)
    count = IMAGES_FOR_CANDIDATES if searched else None
    batch = random_images(side_a.config, seed)[:count] if images is None else _checked(images, side_a)
    truth = None if labels is None else _checked_labels(labels, batch, side_a)
    evidence = gather(side_a, side_b, batch, seed, on_step)
    shown = f"on {len(batch)} {'random images' if images is None else 'images'}"
    compared = None
    if gradients or (gradients is None and origin == "random" and searched):
        on_step("gradients in float64")
        follower = evidence.aligned.side if evidence.aligned is not None else side_b
        try:
            compared = compare_gradients(side_a, follower, batch[:1].astype(np.float64), seed)
        except MixerEquivError as error:
            notes.append(f"gradients are not compared: {error}")
    return _report(evidence, policy, origin, shown, notes, truth, compared)


def _checked(images: Any, side: Subject) -> np.ndarray:
    images = to_numpy("images", images)
    expected = (*side.config.image_hw, side.config.in_channels)
    if images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise ConfigError(f"images have shape {images.shape}; expected (batch, {', '.join(map(str, expected))})")
    return images


def _checked_labels(labels: Any, images: np.ndarray, side: Subject) -> np.ndarray:
    labels = to_numpy("labels", labels)
    if not side.config.num_classes:
        raise ConfigError(f"labels are given, and {side.name} has no head to predict them")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(f"labels are {labels.shape} {labels.dtype}; expected {images.shape[:1]} whole numbers")
    return labels


def _report(
    evidence: Evidence,
    policy: Policy,
    origin: str,
    images: str,
    notes: list[str],
    labels: np.ndarray | None,
    gradients: Gradients | None,
) -> Report:
    a, b, last = evidence.a.side, evidence.b.side, evidence.last
    stages = evidence.stages()
    sides = _side(evidence.a, b, origin, labels), _side(evidence.b, a, origin, labels)
    differing_weights = weight_causes(a, b) if origin == "given" else []
    port_causes = (*differing_weights, *(round_trip_causes(sides) if origin == "given" else []))
    judgement = judge(evidence, policy, port_causes)
    if not port_causes and (a.found is not None or b.found is not None):
        judgement = explained(judgement, a, b)
    judgement = with_gradients(judgement, gradients)
    over = [s.name for s in stages if max(s.residual, s.residual_a, s.residual_b) > policy.residual]
    apart = judgement.verdict in ("different", "equivalent_under", "inexpressible")
    predictions = [run.float32["logits"].argmax(axis=-1) for run in (evidence.a, evidence.b) if last == "logits"]
    weights = {"given": "bit by bit", "random": "random, shared"}.get(origin, f"from {origin}")
    if differing_weights:
        weights = f"{sum(int(cause.count.split()[0]) for cause in differing_weights)} of {len(a.weights)} arrays differ"
    bindings = b.layout.bindings(b.config.num_blocks, head=b.config.num_classes > 0)
    return Report(
        verdict=judgement.verdict,
        residual=stages[-1].residual,
        decision=max(stages[-1].residual, stages[-1].residual_a, stages[-1].residual_b),
        threshold=policy.residual,
        stages=stages,
        first_divergence=over[0] if over and apart else None,
        causes=judgement.causes,
        residual_without_causes=judgement.residual_without_causes,
        reasons=judgement.reasons,
        mapping={name: binding.foreign for name, binding in bindings.items() if not binding.is_absent},
        unobservable=tuple(UNOBSERVABLE.format(i=i) for i in range(a.config.num_blocks)),
        warnings=(*notes, *judgement.warnings, *_float32_warnings(sides, policy)),
        environment=_environment(),
        sides=sides,
        weights=weights,
        images=images,
        num_images=evidence.num_images,
        gradients=gradients,
        max_difference=float(np.max(np.abs(evidence.a.float64[last] - evidence.b.float64[last]))),
        prediction_flips=int(np.sum(predictions[0] != predictions[1])) if predictions else None,
    )


def _not_found(side: Subject, notes: list[str], policy: Policy) -> Report:
    """Where a model is no Mixer, or one whose weights no official model can have."""
    assert side.found is not None
    found = side.found
    official = side.config.replace(**{name: getattr(OFFICIAL, name) for name in CONVENTIONS})
    causes = deviation_causes(side, side.replace(found=None, config=official)) + constraint_causes(side)
    # Without a LayerNorm, or with next to nothing found, it is no Mixer; else one that differs.
    named = any(verdict_of(cause.name) == "inexpressible" for cause in causes)
    beyond = named or len(found.known) < LEAST_KNOWN or not any("orm" in name for name in found.known)
    return Report(
        verdict="inexpressible" if beyond else "different",
        threshold=policy.residual,
        first_divergence=found.deviations[0].step if found.deviations else found.missing,
        causes=tuple(causes),
        residual_without_causes=found.residual,
        reasons=found.reasons,
        warnings=tuple(notes),
        environment=_environment(),
    )


# Steps with parameters that must be found before something is called a Mixer that differs.
LEAST_KNOWN = 7


def _of_other_sizes(a: Subject, b: Subject, differences: list[str], policy: Policy) -> Report:
    return Report(
        verdict="different",
        threshold=policy.residual,
        reasons=(f"{a.name} and {b.name} are of different sizes, so nothing was run", *differences),
        environment=_environment(),
    )


def _side(run: Run, other: Subject, origin: str, labels: np.ndarray | None) -> Side:
    side, last = run.side, run.last
    assert side.checkpoint is not None
    # A model that deviates is not the reference, whatever the precision.
    float32, reference = run.float32[last], (run.reference if side.found is None else run.float64)[last]
    trip = _round_trip(side.checkpoint, other.layout) if origin == "given" else (None, "")
    return Side(
        name=side.name,
        program=PROGRAM_NAMES[side.program],
        num_parameters=side.checkpoint.num_parameters,
        weights=f"{len(side.checkpoint)} arrays, {', '.join(side.checkpoint.dtypes)}",
        round_trip=trip[0],
        round_trip_path=trip[1],
        float32_error=None if side.program == "reference" else residual(float32, reference),
        accuracy=None if labels is None else float(np.mean(float32.argmax(axis=-1) == labels)),
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
