"""`combine`: faults that show as several deviations at once, recognised in their places in the official program."""

from __future__ import annotations

import dataclasses

from mixer_equiv.equivalence.deviation import Choice, Deviation
from mixer_equiv.equivalence.match.repetition import AGAIN
from mixer_equiv.equivalence.match.sublayers import SWAPPED


def combine(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """Put the deviations together that are one fault, such as a LayerNorm in another place."""
    for pattern in (_post_norm, _one_later, _after_stem, _after_pool, _mlp_head, _once_more, _swapped):
        deviations = pattern(deviations)
    return deviations


def _post_norm(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """A LayerNorm that stands after the addition is not missing before the branch."""
    moved = {d.step for d in deviations if d.what == "post_norm"}
    return tuple(d for d in deviations if not (d.kind == "skip" and d.what == "layer_norm" and d.step in moved))


def _one_later(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """LayerNorms that all stand one place later: one is missing, the stream is normalised, and there is one at the end.

    So they show after additions of which some are missing, since what is normalised then goes to a branch alone.
    """
    missing = [d for d in deviations if d.kind == "skip" and d.what == "layer_norm" and d.step != "pre_head_layer_norm"]
    normalised = [d for d in deviations if d.what == "residual" and d.found is Choice.NORMALISED_STREAM]
    last = [d for d in deviations if d.kind == "insert" and d.what == "layer_norm" and d.step == _POOL]
    if not (len(missing) == len(last) == 1 and normalised):
        return deviations
    before = {d.step: d for d in missing} | {_norm_before(d.step): d for d in normalised}
    moved = (
        Deviation(step, "variant", "post_norm", Choice.BEFORE_BRANCH, Choice.AFTER_ADDITION, place=d.place)
        for step, d in before.items()
    )
    return (*moved, *(d for d in deviations if d not in (*missing, *normalised, *last)))


def _norm_before(add: str) -> str:
    """The name of the LayerNorm of the branch that ends in the addition."""
    block, mixing, _ = add.split("/")
    return f"{block}/{_NORM_OF[mixing]}"


_NORM_OF = {"token_mixing": "LayerNorm_0", "channel_mixing": "LayerNorm_1"}


def _after_stem(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """A further LayerNorm of what enters the first block."""
    is_swapped = any(d.what == SWAPPED and d.step.startswith("MixerBlock_0/") for d in deviations)
    first = f"MixerBlock_0/LayerNorm_{int(is_swapped)}"
    return tuple(
        dataclasses.replace(d, step="stem", kind="variant", what="norm_after_stem", expected="stem", found=_STEM)
        if d.kind == "insert" and d.what == "layer_norm" and d.step == first
        else d
        for d in deviations
    )


_STEM = "stem, LayerNorm"


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
    """The operations at the head up to its last layer; what follows, such as a softmax, is no part of it."""
    at_head = [d for d in deviations if d.kind == "insert" and d.step == "head"]
    linear = [i for i, d in enumerate(at_head) if d.what == "linear"]
    if not linear:
        return deviations
    layers = at_head[: linear[-1] + 1]
    parameters = tuple(name for d in layers for name in d.parameters)
    head = Deviation("head", "insert", "mlp_head", "one Dense", "several layers", parameters, place=layers[0].place)
    return (*(d for d in deviations if not any(d is layer for layer in layers)), head)


def _once_more(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """A branch that comes once more is a further MLP; what it does otherwise is told with what it repeats."""
    placed = [dataclasses.replace(d, step=d.step.replace(AGAIN, "")) for d in deviations]
    named = [_further_mlp(d) if d.what == "branch" else d for d in placed]
    return tuple(dict.fromkeys(named))


def _further_mlp(added: Deviation) -> Deviation:
    return Deviation(
        added.step.removesuffix("/add"), "variant", "extra_mlp", "one MLP", "more than one MLP", place=added.place
    )


def _swapped(deviations: tuple[Deviation, ...]) -> tuple[Deviation, ...]:
    """Two branches in each other's place are the MLPs of a block."""
    return tuple(
        dataclasses.replace(
            d, step=d.step.partition("/")[0], expected="token mixing first", found="channel mixing first"
        )
        if d.what == SWAPPED
        else d
        for d in deviations
    )
