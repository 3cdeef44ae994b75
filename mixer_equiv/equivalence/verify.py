"""`verify`: compare two Mixers as functions, or as holders of the same weights.

Start here to follow a verification: arguments are checked, both sides resolved, weights given, runs compared, and the
verdict explained.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import to_numpy
from mixer_equiv.checkpoints.differences import port_faults
from mixer_equiv.config import MixerConfig, as_image, size_differences
from mixer_equiv.equivalence.call_record import recorded
from mixer_equiv.equivalence.judge.causes import round_trip_causes, weight_causes
from mixer_equiv.equivalence.judge.decide import Judgement, explained, judge, trained_apart, with_gradients
from mixer_equiv.equivalence.judge.evidence import Evidence, gather
from mixer_equiv.equivalence.judge.float32 import in_float32
from mixer_equiv.equivalence.judge.gradients import common_space, compare_gradients
from mixer_equiv.equivalence.judge.report_assembly import (
    not_found,
    of_nothing,
    of_other_sizes,
    of_other_weights,
    report_of,
    sides_of,
)
from mixer_equiv.equivalence.judge.rounding import by_rounding
from mixer_equiv.equivalence.judge.training import compare_training
from mixer_equiv.equivalence.judge.visible_faults import visible
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.policy import Policy
from mixer_equiv.equivalence.record.precision import on_device
from mixer_equiv.equivalence.report import Gradients, Report, Training
from mixer_equiv.equivalence.sides.base import Image, NotAMixer, WeightedSide
from mixer_equiv.equivalence.sides.drawn_weights import random_images
from mixer_equiv.equivalence.sides.replayed import ReplayedSide
from mixer_equiv.equivalence.sides.resolve import resolve
from mixer_equiv.equivalence.sides.weights import donor_by, donor_of, give_weights, is_said
from mixer_equiv.errors import ConfigError, ConventionWarning, MixerEquivError, NotFollowedError, did_you_mean

# Somebody else's model is run on few images, because every value of it is recorded.
IMAGES_FOR_CANDIDATES = 4

# The number of images on which known faults are planted, to see which of them would show.
VISIBLE_ON = 2

LOW_PRECISION = ("float32", "bfloat16", "float16")


@recorded
def verify(
    a: Any,
    b: Any = None,
    *,
    weights: Any = None,
    config: MixerConfig | None = None,
    kwargs: Mapping[str, Any] | None = None,
    image: Image | None = None,
    images: Any = None,
    labels: Any = None,
    allow_missing: Collection[str] = (),
    gradients: bool | None = None,
    train_steps: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    fail_fast: bool = False,
    seed: int = 0,
    policy: Policy | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare two Mixers: as programs, or as holders of the same weights.

    A side is a checkpoint or the path of one, arrays by name, "flax", "nnx", "torch" or "reference"
    (with a variant: "flax:B/16"), any model of torch, Flax linen or nnx, a class or function that makes
    one, or the place of these: "path/to/file.py:Name", "package.module:Name", "timm:NAME". Without `b`, a
    checkpoint is compared with its port to the other framework, somebody else's torch model with the NumPy
    reference, and any other model with the official Flax one (the Flax one with torch).

    `weights` are "random" (drawn from `seed`, every parameter, the head included), "given" (each
    side's own, which must then be bit-identical too), or a checkpoint that both sides take, which may
    be by the names of a model that is compared. By
    default they are given if a side is a checkpoint, else random.
    Both sides are of `config`, if it is given: classes and functions are called with it, and "flax", "nnx",
    "torch" and "reference" have its sizes and conventions.
    `kwargs` are what a class, a function or a model at a place is called with, or `MixerConfig` fields for
    "flax", "nnx", "torch" and "reference". `image` is (channels, height, width), where shapes alone would make it a
    square grid; models that are not ours need it. `images` are (batch, height, width, channels), random
    if absent; with `labels` (batch,) accuracies are counted.
    `allow_missing` are globs such as "head/*", of parameters that checkpoints may lack.
    `gradients` says whether these are compared as well, on one image; by default they are for
    models that are not ours with random weights. `train_steps` are steps of SGD, and as many of AdamW,
    after which parameters are compared. `dtype` is the low precision whose errors are shown, "float32",
    "bfloat16" or "float16"; `device` is torch's, and JAX's if it has one of the kind. With `fail_fast`
    nothing more is computed once the two are seen to differ. `on_step` is told what begins.

    Everything is decided in float64 (see `Policy`), with the NumPy reference as third opinion;
    the user's modules, random state and precision settings are left as they were.
    Raises `MixerEquivError` for sides that cannot be read, or have no weights where they must.
    """
    if a is None:
        raise MixerEquivError("there is nothing to verify: a is None")
    for name, count in (("seed", seed), ("train_steps", train_steps)):
        if not isinstance(count, int) or count < 0:
            raise ConfigError(f"{name} is {count!r}; it must be a whole number of at least 0")
    if dtype not in LOW_PRECISION:
        raise ConfigError(
            f"dtype is {dtype!r}, the low precision to show; it must be {', '.join(LOW_PRECISION)}"
            f"{did_you_mean(str(dtype), LOW_PRECISION)}"
        )
    if config is not None and not isinstance(config, MixerConfig):
        raise ConfigError(f"config is a {type(config).__name__}; it must be a MixerConfig")
    image = None if image is None else as_image(image)
    asked = _Asked(gradients, train_steps, dtype, fail_fast, seed, policy or Policy(), on_step)
    with on_device(device):
        on_step("reading")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConventionWarning)
            donor = donor_of(weights)
            sizes = donor.config if donor else None
            try:
                sides = resolve(
                    a, b, config=config, kwargs=kwargs, image=image, sizes=sizes, allow_missing=allow_missing, seed=seed
                )
            except NotFollowedError as error:
                return of_nothing(error, asked.policy)
            if donor is None and not is_said(weights):
                donor = donor_by(weights, sides)
        notes = [Notice(text) for text in _ours(caught)]
        notes += [notice for side in sides for notice in side.notices]
        side_a, side_b = sides
        if isinstance(side_a, NotAMixer):
            return not_found(side_a, notes, asked.policy)
        if isinstance(side_b, NotAMixer):
            return not_found(side_b, notes, asked.policy)
        differences = size_differences(side_a.config, side_b.config)
        if differences:
            return of_other_sizes(side_a, side_b, differences, asked.policy)
        weighted_a, weighted_b, origin = give_weights(side_a, side_b, donor or weights, seed)
        return _compared(weighted_a, weighted_b, origin, images, labels, notes, asked)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The arguments of `verify` that steer the comparison, by their names."""

    gradients: bool | None
    train_steps: int
    dtype: str
    fail_fast: bool
    seed: int
    policy: Policy
    on_step: Callable[[str], None]


def _compared(
    a: WeightedSide, b: WeightedSide, origin: str, images: Any, labels: Any, notes: list[Notice], asked: _Asked
) -> Report:
    """Compare two sides of one size, whose weights are from `origin`."""
    faults = list(port_faults(a.weights, b.weights, a.config)) if origin == "given" else []
    weights = weight_causes(faults, a, b)
    if weights and asked.fail_fast:
        return of_other_weights(a, b, weights, asked.policy)
    searched = a.side.is_foreign or b.side.is_foreign
    few = IMAGES_FOR_CANDIDATES if searched else None
    batch = random_images(a.config, asked.seed)[:few] if images is None else _checked(images, a)
    truth = None if labels is None else _checked_labels(labels, batch, a)
    evidence = gather(a, b, batch, asked.seed, asked.dtype, asked.on_step)
    sides = sides_of(evidence, origin, truth)
    port_causes = (*weights, *(round_trip_causes(sides) if origin == "given" else []))
    judgement = judge(evidence, asked.policy, port_causes)
    if searched:
        judgement = explained(judgement, a.side, b.side, port_causes)
    judgement = in_float32(judgement, evidence, asked.policy)
    by_default = asked.gradients is None and origin == "random" and searched
    if port_causes or (asked.fail_fast and judgement.verdict != "equivalent"):
        asked = dataclasses.replace(asked, gradients=False, train_steps=0)
    elif by_default:
        asked = dataclasses.replace(asked, gradients=True)
    compared, training = _on_the_way_back(evidence, judgement, notes, asked)
    by_outputs, judgement = judgement, trained_apart(with_gradients(judgement, compared, asked.policy), training)
    if not port_causes:
        judgement = by_rounding(judgement, by_outputs, evidence, asked.seed, asked.policy)
    asked.on_step("what these inputs could show")
    shown = {"given": "bit by bit", "random": "random, shared"}.get(origin, f"from {origin}")
    if faults:
        shown = f"{sum(len(fault.arrays) for fault in faults)} of {len(a.weights)} arrays differ"
    return report_of(
        evidence,
        judgement,
        sides,
        asked.policy,
        weights=shown,
        notes=notes,
        images=f"on {len(batch)} {'random images' if images is None else 'images'}",
        gradients=compared,
        training=training,
        visible=visible(a.config, a.weights, batch[:VISIBLE_ON]),
    )


def _on_the_way_back(
    evidence: Evidence, judgement: Judgement, notes: list[Notice], asked: _Asked
) -> tuple[Gradients | None, tuple[Training, ...]]:
    """Compare gradients and training steps on one image, if the outputs agree; else add the reason to `notes`.

    They agree as well where they do with what the judgement names changed.
    """
    if not (asked.gradients or asked.train_steps):
        return None, ()
    a, b = evidence.a.side, evidence.aligned.side if evidence.aligned is not None else evidence.b.side
    if asked.policy.rate(*evidence.residuals()) not in ("same", "rounding"):
        a = next((side for side in (a, evidence.b.side) if side.side.is_foreign), a)
        replayed = ReplayedSide.of(a.side) if judgement.verdict == "equivalent_under" else None
        if replayed is None:
            notes.append(Notice("gradients are not compared, since the outputs differ"))
            return None, ()
        b = WeightedSide(replayed, a.checkpoint)
    image = evidence.images[:1].astype(np.float64)
    space = common_space(a, b)
    if space is None:
        notes.append(Notice("gradients are not compared, since the parameters of the one are not those of the other"))
        return None, ()
    compared: Gradients | None = None
    training: list[Training] = []
    try:
        if asked.gradients:
            asked.on_step("gradients in float64")
            compared = compare_gradients(a, b, space, image, asked.seed, asked.policy.gradients)
        if asked.train_steps:
            asked.on_step("training steps in float64")
            training += compare_training(a, b, space, image, asked.seed, asked.train_steps, asked.policy)
    except MixerEquivError as error:
        notes.append(Notice(f"gradients are not compared: {error}"))
    return compared, tuple(training)


def _ours(caught: list[warnings.WarningMessage]) -> list[str]:
    """The texts of our own warnings; other warnings are issued again."""
    for warning in caught:
        if not issubclass(warning.category, ConventionWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return [str(warning.message) for warning in caught if issubclass(warning.category, ConventionWarning)]


def _checked(images: Any, side: WeightedSide) -> np.ndarray:
    images = to_numpy("images", images)
    expected = (*side.config.image_hw, side.config.in_channels)
    if images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise ConfigError(f"images have shape {images.shape}; expected (batch, {', '.join(map(str, expected))})")
    return images


def _checked_labels(labels: Any, images: np.ndarray, side: WeightedSide) -> np.ndarray:
    labels = to_numpy("labels", labels)
    if not side.config.num_classes:
        raise ConfigError(f"labels are given, and {side.name} has no head to predict them")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ConfigError(f"labels are {labels.shape} {labels.dtype}; expected {images.shape[:1]} whole numbers")
    return labels
