"""`unfolded`: LayerNorms whose scale and bias a model multiplies into the layer behind, as W * scale and W @ bias + b.

A search finds such a LayerNorm without scale and bias, and a layer whose kernel and bias are computed. They are the
official ones where these, of the parameters that went into them, give the computed ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from mixer_equiv.equivalence.match.axes import axis_orders, reorder_axes
from mixer_equiv.equivalence.match.parameter_search import AbsentParameter, AssignedOperand, Assignment
from mixer_equiv.equivalence.match.program_search import WholeMatch
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.array_fingerprint import TOLERANCE
from mixer_equiv.equivalence.record.trace import Trace, Value
from mixer_equiv.errors import summarize
from mixer_equiv.operations import Array, Step


def unfolded(found: WholeMatch, trace: Trace) -> tuple[WholeMatch, list[Notice]]:
    """The match with the scales, biases and kernels that were multiplied, and a notice of where they were."""
    norms = [step for step in found.program.steps if step.operation == "layer_norm"]
    moved = []
    for norm in norms:
        between, layer = _behind(norm, found)
        changed = {} if layer is None else _parts_of(norm, layer, found.assignments, trace)
        if changed:
            seen = tuple(None if place in between else value for place, value in enumerate(found.seen))
            found = dataclasses.replace(found, assignments={**found.assignments, **changed}, seen=seen)
            moved.append(norm.name)
    said = f"scales and biases of LayerNorms are folded into the layers behind them: {summarize(moved, 2)}"
    return found, [Notice(said)] if moved else []


def _behind(norm: Step, found: WholeMatch) -> tuple[list[int], Step | None]:
    """The layer over the channels of a LayerNorm's result, and the places of the values before it."""
    steps = found.program.steps
    places = [steps.index(norm) + 1]
    while True:
        after = [step for step in steps if places[-1] in step.inputs]
        if len(after) != 1 or after[0].operation not in ("mean", "linear"):
            return places, None
        if after[0].operation == "linear":
            return places, after[0]
        places.append(steps.index(after[0]) + 1)


def _parts_of(norm: Step, layer: Step, assignments: Mapping[str, Assignment], trace: Trace) -> dict[str, Assignment]:
    """What scale and bias, kernel and bias are, where those that were found are made of them."""
    names = [parameter.name for parameter in (*norm.parameters, *layer.parameters)]
    scale, norm_bias, kernel, bias = (assignments[name] for name in names)
    if not isinstance(kernel, AssignedOperand) or kernel.second_layer is not None or len(kernel.sizes) != 2:
        return {}
    changed: dict[str, Assignment] = {}
    if isinstance(scale, AbsentParameter) and kernel.operand.name is None:
        factors = next(_scaled_kernels(kernel, trace), None)
        if factors is not None:
            changed |= dict(zip((names[0], names[2]), factors, strict=True))
            kernel = factors[1]
    if isinstance(norm_bias, AbsentParameter) and isinstance(bias, AssignedOperand) and bias.operand.name is None:
        matrix = reorder_axes(kernel.operand.array, kernel.sizes, kernel.order)
        summands = next(_moved_biases(bias, matrix, trace), None)
        if summands is not None:
            changed |= dict(zip((names[1], names[3]), summands, strict=True))
    return changed


def _scaled_kernels(kernel: AssignedOperand, trace: Trace) -> Iterator[tuple[AssignedOperand, AssignedOperand]]:
    """Scales and kernels whose product is a computed kernel."""
    product = reorder_axes(kernel.operand.array, kernel.sizes, kernel.order)
    for scale in _operands_in(kernel.operand, kernel.sizes[0], trace):
        for factor in _operands_in(kernel.operand, product.size, trace):
            for order in axis_orders(kernel.sizes, factor.array.shape):
                scaled = reorder_axes(factor.array, kernel.sizes, order) * scale.array.reshape(-1, 1)
                if _is_same(scaled, product):
                    yield AssignedOperand(scale, kernel.sizes[:1]), AssignedOperand(factor, kernel.sizes, order)


def _moved_biases(bias: AssignedOperand, matrix: Array, trace: Trace) -> Iterator[tuple[AssignedOperand, Assignment]]:
    """Biases before and behind a kernel that together are a computed bias; there may be none behind it."""
    total, width = bias.operand.array.reshape(-1), len(matrix)
    for before in _operands_in(bias.operand, width, trace):
        moved = before.array.reshape(-1) @ matrix
        if _is_same(moved, total):
            yield AssignedOperand(before, (width,)), AbsentParameter(bias.sizes)
        for behind in _operands_in(bias.operand, total.size, trace):
            if _is_same(moved + behind.array.reshape(-1), total):
                yield AssignedOperand(before, (width,)), AssignedOperand(behind, bias.sizes)


def _operands_in(computed: Value, size: int, trace: Trace) -> list[Value]:
    """The operands of a size that are made of no other parameters than a computed one."""
    return [o for o in trace.operands if o.size == size and o.leaves <= computed.leaves and o is not computed]


def _is_same(array: Array, expected: Array) -> bool:
    return bool(np.linalg.norm(array - expected) <= TOLERANCE * np.linalg.norm(expected))
