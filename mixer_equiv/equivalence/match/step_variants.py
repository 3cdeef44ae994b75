"""Known variants: what code is seen to compute where a program has one of the operations.

These are tables for the search and for the check that inputs could show a fault; nothing here searches,
and nothing knows a model. A new variant is a line here and a name in the catalogue of faults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from mixer_equiv.activations import ACTIVATIONS, RoundedActivation, activation_function
from mixer_equiv.equivalence.deviation import Arithmetic, Choice, Clipped, ResultOf, Setting
from mixer_equiv.operations import Array, Step, normalise, swap

# The operations that code may leave out.
SKIPPABLE = {"layer_norm": Choice.LAYER_NORM, "activate": Choice.ACTIVATION, "add": Choice.STREAM_ADDED}


class Change(NamedTuple):
    """A setting that differs."""

    what: str
    expected: Setting
    found: Setting


class LayerNormVariant(NamedTuple):
    """A normalisation in the place of a LayerNorm, without scale and bias."""

    changes: tuple[Change, ...]
    compute: Callable[[Array], Array]


class Variant(NamedTuple):
    """One change of a step, and its result, which may have the elements of the step's input in another order."""

    change: Change
    compute: Callable[[], Array]
    is_rearranged: bool = False


# Activations that code may have where the program has one, or beside it: those that a config can say, and others, each
# under the id of its own fault.
MLP_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {**ACTIVATIONS}

POOLINGS: dict[Choice, Callable[[Array], Array]] = {
    Choice.MAX: lambda x: x.max(axis=1),
    Choice.SUM: lambda x: x.sum(axis=1),
    Choice.FIRST_TOKEN: lambda x: x[:, 0],
    Choice.LAST_TOKEN: lambda x: x[:, -1],
    Choice.MEAN_OVER_CHANNELS: lambda x: x.mean(axis=-1),
}

# Arrangements of all tokens that code may have in the place of a pooling.
UNPOOLED: tuple[tuple[Choice, Callable[[Array], Array]], ...] = (
    (Choice.EVERY_TOKEN, lambda x: x),
    (Choice.FLATTENED, lambda x: x.reshape(len(x), -1)),
    (Choice.FLATTENED, lambda x: swap(x).reshape(len(x), -1)),
)


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# Functions that code applies to logits at the end.
OUTPUTS: dict[str, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "log_softmax": lambda x: np.log(_softmax(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def candidate_epsilons(scalars: Sequence[float]) -> list[float]:
    """Numbers that may be the eps of a LayerNorm: small ones among the run's `scalars`, then the usual ones."""
    return list(dict.fromkeys([*sorted(c for c in scalars if 0 < c < 0.5), 1e-5, 1e-6, 1e-3, 0.0, 1e-12]))


def layer_norm_variants(eps: float, scalars: Sequence[float]) -> Iterator[LayerNormVariant]:
    """Normalisations other than a LayerNorm over the last axis with this `eps`."""
    others = [other for other in candidate_epsilons(scalars) if other != eps]
    for other in others:
        yield LayerNormVariant((Change("layer_norm_eps", eps, other),), partial(normalise, eps=other))
    for e in (eps, *others):
        also = () if e == eps else (Change("layer_norm_eps", eps, e),)
        for change, compute in (
            (Change("layer_norm_variance", Choice.BIASED, Choice.UNBIASED), partial(normalise, eps=e, ddof=1)),
            (Change("layer_norm_axes", Choice.CHANNELS, Choice.TOKENS_AND_CHANNELS), partial(_over_both, eps=e)),
            (Change("layer_norm_axes", Choice.CHANNELS, Choice.TOKENS), partial(_over_tokens, eps=e)),
            (
                Change("layer_norm_mean", Choice.SUBTRACTED, Choice.NOT_SUBTRACTED),
                partial(normalise, eps=e, centred=False),
            ),
        ):
            yield LayerNormVariant((change, *also), compute)


def _over_both(x: Array, eps: float) -> Array:
    return normalise(x.reshape(len(x), -1), eps).reshape(x.shape)


def _over_tokens(x: Array, eps: float) -> Array:
    """Normalise over the last axis but one; of a single token for each image there is nothing to normalise."""
    return swap(normalise(swap(x), eps)) if x.ndim > 2 else x


def variants(
    step: Step,
    inputs: tuple[Array, ...],
    earlier: Sequence[tuple[Step, Array]],
    rounded: Sequence[RoundedActivation] = (),
) -> Iterator[Variant]:
    """Variants of a step on these `inputs`, but for LayerNorms.

    `earlier` are the steps before it with their values, `rounded` the activations with other constants that may be.
    """
    x = inputs[0]
    if step.operation == "activate":
        (expected,) = step.settings
        for name, function in MLP_ACTIVATIONS.items():
            if name != expected:
                what = "activation" if name in ACTIVATIONS else name
                yield Variant(Change(what, expected, name), partial(function, x))
        for activation in rounded:
            yield Variant(Change("activation", expected, activation), partial(activation_function(activation), x))
    elif step.operation == "mean":
        for choice, function in POOLINGS.items():
            yield Variant(Change("pooling", Choice.MEAN, choice), partial(function, x))
        for choice, function in UNPOOLED:
            yield Variant(Change("pooling", Choice.MEAN, choice), partial(function, x), is_rearranged=True)
    elif step.operation == "add":
        for found, other in _other_summands(inputs, earlier):
            yield Variant(Change("residual", Choice.STREAM, found), partial(np.add, other, inputs[-1]))
    elif step.operation == "swap":
        shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
        change = Change("transpose", Choice.TRANSPOSED, Choice.RESHAPED)
        yield Variant(change, partial(np.reshape, x, shape), is_rearranged=True)


def _other_summands(
    inputs: tuple[Array, ...], earlier: Sequence[tuple[Step, Array]]
) -> Iterator[tuple[Choice | ResultOf, Array]]:
    """Earlier values that code may add in the place of the first input, the latest first."""
    x = inputs[0]
    norms = 0
    for step, value in reversed(earlier):
        if value.shape == x.shape and value is not x and value is not inputs[-1]:
            is_norm = step.operation == "layer_norm"
            # The latest normalised value is the branch's own.
            yield Choice.NORMALISED_STREAM if is_norm and not norms else ResultOf(step.name), value
            norms += is_norm


def arithmetic(x: Array, scalars: Sequence[float]) -> Iterator[tuple[Arithmetic, Array]]:
    """`x` times, over, plus and minus each of the run's `scalars`."""
    for c in dict.fromkeys(scalars):
        if c not in (0, 1) and np.isfinite(c):
            for operator, array in (("*", x * c), ("/", x / c), ("+", x + c), ("-", x - c)):
                yield Arithmetic(operator, c), array


def clipped(x: Array, scalars: Sequence[float]) -> Iterator[tuple[Clipped, Array]]:
    """`x` kept below, above and between the run's `scalars`, where that changes it."""
    numbers = [c for c in dict.fromkeys(scalars) if np.isfinite(c)]
    pairs = [(-math.inf, c) for c in numbers] + [(c, math.inf) for c in numbers]
    pairs += [(low, high) for low in numbers for high in numbers if low < high]
    smallest, largest = x.min(), x.max()
    for low, high in pairs:
        if smallest < low < largest or smallest < high < largest:
            yield Clipped(low, high), np.clip(x, low, high)
