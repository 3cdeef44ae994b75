"""The catalogue: what code is known to do other than the official model, what it is called, and what follows."""

from __future__ import annotations

import dataclasses

from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.report import Verdict
from mixer_equiv.layouts import CONSTRAINTS


@dataclasses.dataclass(frozen=True)
class Fault:
    """A way to differ: the operation it is about, what these are called together, and the verdict it leads to."""

    operation: str
    noun: str
    verdict: Verdict = "different"


# By the name of the cause.
CODE = {
    "activation": Fault("activate", "MLPs", "equivalent_under"),
    "layer_norm_eps": Fault("layer_norm", "LayerNorms", "equivalent_under"),
    "layer_norm_missing": Fault("layer_norm", "LayerNorms", "inexpressible"),
    "layer_norm_axes": Fault("layer_norm", "LayerNorms"),
    "layer_norm_variance": Fault("layer_norm", "LayerNorms"),
    "layer_norm_mean": Fault("layer_norm", "LayerNorms"),
    "post_norm": Fault("layer_norm", "LayerNorms"),
    "norm_after_pool": Fault("mean", "pooling"),
    "residual_missing": Fault("add", "branches"),
    "residual_normalised": Fault("add", "branches"),
    "residual": Fault("add", "branches"),
    "pooling": Fault("mean", "pooling"),
    "output": Fault("", "output"),
    "transpose": Fault("swap", "transposes"),
    "reshape": Fault("", "places"),
    "position_embedding": Fault("", "embedding", "inexpressible"),
    "mlp_head": Fault("", "head", "inexpressible"),
    "extra_layer": Fault("", "places", "inexpressible"),
    "extra_scale": Fault("", "places"),
    "extra_bias": Fault("", "places"),
    "extra_affine": Fault("", "places"),
    "extra_activation": Fault("", "places"),
    "extra_layer_norm": Fault("", "places", "inexpressible"),
    "constant": Fault("", "places"),
    "preprocessing": Fault("", "input"),
    "unknown": Fault("", "steps"),
}

# Faults that leave the function what it is: a user is told of them in a warning.
NOTICES = frozenset({"not_in_state_dict", "train_mode"})

_NAMES = {
    ("skip", "layer_norm"): "layer_norm_missing",
    ("skip", "activate"): "activation",
    ("skip", "add"): "residual_missing",
    ("insert", "layer_norm"): "extra_layer_norm",
    ("insert", "scale"): "extra_scale",
    ("insert", "bias"): "extra_bias",
    ("insert", "affine"): "extra_affine",
    ("insert", "embedding"): "position_embedding",
    ("insert", "activation"): "extra_activation",
    ("insert", "linear"): "extra_layer",
}


def name_of(deviation: Deviation) -> str:
    """What a deviation is called in a report."""
    if deviation.kind == "unknown":
        return "unknown"
    if deviation.what == "residual" and deviation.found is Choice.NORMALISED_STREAM:
        return "residual_normalised"
    return _NAMES.get((deviation.kind, deviation.what), deviation.what)


def verdict_of(cause: str) -> Verdict:
    """The verdict on a model that differs in this alone."""
    if cause in CONSTRAINTS:
        return "equivalent_under"
    return CODE[cause].verdict if cause in CODE else "different"


def recognised(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """The same, with those put together that are one thing: a norm in another place, a head of several layers."""
    for pattern in (_post_norm, _after_pool, _mlp_head):
        deviations = pattern(deviations)
    return deviations


def _post_norm(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """Each LayerNorm one place later: the first left out, the stream normalised from there on, one more at the end."""
    first = [d for d in deviations if d.kind == "skip" and d.step == "MixerBlock_0/LayerNorm_0"]
    normalised = [d for d in deviations if name_of(d) == "residual_normalised"]
    last = [d for d in deviations if d.kind == "insert" and d.what == "layer_norm" and d.step.endswith("/mean")]
    if not (first and normalised and last):
        return deviations
    together = [*first, *normalised, *last]
    moved = [
        Deviation(d.step, "variant", "post_norm", "before each branch", "after each addition", last[0].parameters)
        for d in first
    ]
    return (*moved, *(d for d in deviations if d not in together))


def _after_pool(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    final = [d for d in deviations if d.kind == "skip" and d.step == "pre_head_layer_norm"]
    later = [d for d in deviations if d.kind == "insert" and d.what == "layer_norm" and d.step in ("head", _POOL)]
    if not (final and later):
        return deviations
    moved = Deviation(_POOL, "variant", "norm_after_pool", "LayerNorm, mean", "mean, LayerNorm", later[0].parameters)
    return (*(d for d in deviations if d not in (*final, *later)), moved)


_POOL = "pre_head_layer_norm/mean"


def _mlp_head(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    layers = [d for d in deviations if d.kind == "insert" and d.step == "head"]
    if not any(d.what == "linear" for d in layers):
        return deviations
    parameters = tuple(name for d in layers for name in d.parameters)
    head = Deviation("head", "insert", "mlp_head", "one Dense", "several layers", parameters)
    return (*(d for d in deviations if d not in layers), head)
