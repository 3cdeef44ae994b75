"""Rewrites of the official program that compute the same function, and deviations that are folded into it."""

from __future__ import annotations

import dataclasses

from mixer_equiv.equivalence.deviation import Deviation
from mixer_equiv.equivalence.match.parameter_search import AssignedOperand, Assignment, UnknownParameter
from mixer_equiv.equivalence.match.program_search import ProgramMatch, WholeMatch
from mixer_equiv.equivalence.match.search_state import Insertion
from mixer_equiv.equivalence.mixer.official_program import DEEPEST, official_programs
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.trace import Trace
from mixer_equiv.operations import Step


def relocated(found: ProgramMatch, deviations: tuple[Deviation, ...], trace: Trace) -> dict[str, Assignment]:
    """Assignments by parameter, where those of a LayerNorm behind the pooling are put into its own place."""
    assignments = dict(found.assignments)
    norms = [step for step in found.program.steps if step.operation == "layer_norm"]
    for deviation in (d for d in deviations if d.what == "norm_after_pool"):
        operands = {operand.name: operand for operand in trace.operands}
        extra = [
            AssignedOperand(operands[name], (operands[name].size,)) for name in deviation.parameters if name in operands
        ]
        if len(extra) == 2:
            assignments.update(zip((parameter.name for parameter in norms[-1].parameters), extra, strict=True))
    return assignments


def folded(
    found: WholeMatch, deviations: tuple[Deviation, ...]
) -> tuple[WholeMatch, tuple[Deviation, ...], list[Notice]]:
    """Fold deviations that only write the official function otherwise into the match, and tell of each.

    A second affine layer right behind a linear one is part of it; the head and the affine part of
    the last LayerNorm may stand on either side of the mean.
    """
    kept, notices = [], []
    for deviation in deviations:
        for fold in (_second_layer, _affine_after_mean, _head_before_mean):
            folded = fold(found, deviation) if isinstance(deviation, Insertion) else None
            if folded is not None:
                found, notice = folded
                notices.append(Notice(notice))
                break
        else:
            kept.append(deviation)
    return found, tuple(kept), notices


def _before(found: WholeMatch, deviation: Insertion) -> Step | None:
    """The step whose result the inserted operation changes."""
    step = next(step for step in found.program.steps if step.name == deviation.step)
    return found.program.steps[step.inputs[0] - 1] if step.inputs and step.inputs[0] else None


def _second_layer(found: WholeMatch, deviation: Insertion) -> tuple[WholeMatch, str] | None:
    before = _before(found, deviation)
    if deviation.what != "linear" or before is None or before.operation != "linear":
        return None
    assignments = dict(found.assignments)
    for parameter in before.parameters:
        kernel, bias = deviation.assignments
        assigned = assignments[parameter.name]
        if not isinstance(assigned, UnknownParameter):
            assignments[parameter.name] = dataclasses.replace(assigned, second_layer=(kernel, bias))
    place = found.program.steps.index(before) + 1
    found = dataclasses.replace(
        found, before_insertion={p: pair for p, pair in found.before_insertion.items() if p != place}
    )
    notice = f"two affine layers in a row are taken as one: {before.name}, and {deviation.parameters[0]}"
    return dataclasses.replace(found, assignments=assignments), notice


def _affine_after_mean(found: WholeMatch, deviation: Insertion) -> tuple[WholeMatch, str] | None:
    before = _before(found, deviation)
    if deviation.what not in ("scale", "bias", "affine") or before is None or before.operation != "mean":
        return None
    norm = found.program.steps[before.inputs[0] - 1]
    names = [parameter.name for parameter in norm.parameters]
    if norm.operation != "layer_norm" or any(isinstance(found.assignments[name], AssignedOperand) for name in names):
        return None
    assignments = {**found.assignments, **dict(zip(names, deviation.assignments, strict=True))}
    notice = "the scale and bias of the last LayerNorm stand behind the mean"
    return dataclasses.replace(found, assignments=assignments), notice


def _head_before_mean(found: WholeMatch, deviation: Insertion) -> tuple[WholeMatch, str] | None:
    last = found.program.steps[-1]
    if deviation.what != "linear" or last.operation != "mean" or deviation.step != last.name:
        return None
    (program,) = (
        program
        for program in official_programs(DEEPEST)
        if len(program.steps) == len(found.program.steps) + 1 and program.steps[:-1] == found.program.steps
    )
    assignments = dict(
        zip((parameter.name for parameter in program.steps[-1].parameters), deviation.assignments, strict=True)
    )
    seen = (*found.seen[:-2], None, None, found.seen[-1])
    values = (*found.values, found.values[-1])
    changed = dataclasses.replace(
        found, program=program, assignments={**found.assignments, **assignments}, values=values, seen=seen
    )
    return changed, "the head stands before the mean"
