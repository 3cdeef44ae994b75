"""What code is known to compute where a program has one of the operations: tables, and no search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.operations import ACTIVATIONS, Array, Step, normalise

# Steps that code may leave out, in words.
SKIPPED = {"layer_norm": "a LayerNorm", "activate": "an activation", "add": "the stream added"}

# What differs in a LayerNorm, and whether it is so in what is tried.
Changes = tuple[tuple[str, Any, Any], ...]

POOLINGS: dict[str, Callable[[Array], Array]] = {
    "max": lambda x: x.max(axis=1),
    "sum": lambda x: x.sum(axis=1),
    "first token": lambda x: x[:, 0],
    "last token": lambda x: x[:, -1],
}


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# What may be done to logits at the end.
OUTPUTS: dict[str, Callable[[Array], Array]] = {
    "softmax": _softmax,
    "log_softmax": lambda x: np.log(_softmax(x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def epsilons(scalars: Sequence[float]) -> list[float]:
    """What may be the eps of a LayerNorm: the small numbers that occurred, then the usual ones."""
    return list(dict.fromkeys([*sorted(c for c in scalars if 0 < c < 0.5), 1e-5, 1e-6, 1e-3, 0.0, 1e-12]))


def norms(eps: float, scalars: Sequence[float]) -> Iterator[tuple[Changes, Callable[[Array], Array]]]:
    """Normalisations that are no LayerNorm over the last axis with this eps: what is changed, and the function."""
    others = [other for other in epsilons(scalars) if other != eps]
    for other in others:
        yield (("layer_norm_eps", eps, other),), partial(normalise, eps=other)
    for e in (eps, *others):
        also: Changes = () if e == eps else (("layer_norm_eps", eps, e),)
        yield (("layer_norm_variance", "biased", "unbiased"), *also), partial(normalise, eps=e, ddof=1)
        yield (("layer_norm_axes", "channels", "tokens and channels"), *also), partial(_over_both, eps=e)
        yield (("layer_norm_mean", "subtracted", "not subtracted"), *also), partial(normalise, eps=e, centred=False)


def _over_both(x: Array, eps: float) -> Array:
    return normalise(x.reshape(len(x), -1), eps).reshape(x.shape)


def variants(
    step: Step, inputs: tuple[Array, ...], earlier: Sequence[tuple[Step, Array]]
) -> Iterator[tuple[str, Any, Any, Callable[[], Array]]]:
    """What differs, what was expected, what is tried, and its result; `earlier` are values with their steps."""
    x = inputs[0]
    if step.operation == "activate":
        (expected,) = step.settings
        for name, function in ACTIVATIONS.items():
            if name != expected:
                yield "activation", expected, name, partial(function, x)
    elif step.operation == "mean":
        for name, function in POOLINGS.items():
            yield "pooling", "mean", name, partial(function, x)
    elif step.operation == "add":
        nearest = "the normalised stream"
        for done, other in reversed(earlier):
            if other.shape == x.shape and other is not x and other is not inputs[-1]:
                found = nearest if done.operation == "layer_norm" else f"the result of {done.name}"
                nearest = f"the result of {done.name}" if done.operation == "layer_norm" else nearest
                yield "residual", "the stream", found, partial(np.add, other, inputs[-1])
    elif step.operation == "swap":
        yield "transpose", "transposed", "reshaped", partial(np.reshape, x, (*x.shape[:-2], x.shape[-1], x.shape[-2]))


def constants(x: Array, scalars: Sequence[float]) -> Iterator[tuple[str, Array]]:
    """`x` with one of the numbers that occurred, and the operation in words."""
    for c in dict.fromkeys(scalars):
        if c not in (0, 1) and np.isfinite(c):
            n = f"{c:g}" if float(f"{c:g}") == c else repr(c)
            yield from ((f"* {n}", x * c), (f"/ {n}", x / c), (f"+ {n}", x + c), (f"- {n}", x - c))
