"""`combine`: faults that show as several deviations at once, recognised in their places in the official program."""

from __future__ import annotations

from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.faults.catalogue import fault_of


def combine(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """Put the deviations together that are one fault, such as a LayerNorm in another place."""
    for pattern in (_post_norm, _after_pool, _mlp_head):
        deviations = pattern(deviations)
    return deviations


def _post_norm(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """Combine the signs of LayerNorms one place later: the first missing, the stream normalised, one at the end."""
    first = [d for d in deviations if d.kind == "skip" and d.step == "MixerBlock_0/LayerNorm_0"]
    normalised = [d for d in deviations if fault_of(d).id == "residual_normalised"]
    last = [d for d in deviations if d.kind == "insert" and d.what == "layer_norm" and d.step.endswith("/mean")]
    if not (first and normalised and last):
        return deviations
    together = [*first, *normalised, *last]
    names, place = last[0].parameters, normalised[0].place
    moved = [
        Deviation(d.step, "variant", "post_norm", "before each branch", "after each addition", names, place=place)
        for d in first
    ]
    return (*moved, *(d for d in deviations if d not in together))


def _after_pool(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    final = [d for d in deviations if d.kind == "skip" and d.step == "pre_head_layer_norm"]
    later = [d for d in deviations if d.kind == "insert" and d.what == "layer_norm" and d.step in ("head", _POOL)]
    if not (final and later):
        return deviations
    names, place = later[0].parameters, later[0].place
    moved = Deviation(_POOL, "variant", "norm_after_pool", "LayerNorm, mean", "mean, LayerNorm", names, place=place)
    return (*(d for d in deviations if d not in (*final, *later)), moved)


_POOL = "pre_head_layer_norm/mean"


def _mlp_head(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    layers = [d for d in deviations if d.kind == "insert" and d.step == "head"]
    if not any(d.what == "linear" for d in layers):
        return deviations
    parameters = tuple(name for d in layers for name in d.parameters)
    head = Deviation("head", "insert", "mlp_head", "one Dense", "several layers", parameters, place=layers[0].place)
    return (*(d for d in deviations if d not in layers), head)
