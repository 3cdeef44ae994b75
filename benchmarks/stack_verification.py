"""Deep verification of a stack of draws: weights bit by bit, outputs and gradients in float64, Flax against torch.

Start reading at `verify_draws`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.stack_runs import RunOptions, StackResults, run_stack_in_flax, run_stack_in_torch
from benchmarks.stacks import Arrays, Stack, convert_stack, draw_stack, relabel_stack
from mixer_equiv import MixerConfig
from mixer_equiv.checkpoints.differences import bit_differences
from mixer_equiv.equivalence.policy import Policy, Rating, gradient_residuals, residual
from mixer_equiv.layouts import LINEN, TORCH

# Gradients are judged as outputs are: float32 tells rounding from a difference.
POLICIES = {"outputs": Policy(), "gradients": dataclasses.replace(Policy(), residual=Policy().gradients)}


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """A fault of a draw. `tier` is "weights", "outputs" or "gradients"; `message` says where, or how far off."""

    draw: int
    tier: str
    message: str


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result of a stack. `rounding` lists the draws that only float32 showed to be right.

    `outputs` and `gradients` are the largest residuals of the draws that are neither rounding nor mismatches.
    """

    mismatches: tuple[Mismatch, ...]
    rounding: tuple[int, ...]
    outputs: float
    gradients: float


def verify_draws(config: MixerConfig, count: int, batch: int, seed: int, options: RunOptions) -> Verification:
    """Draw, convert, run and compare: the work that is timed."""
    stack = draw_stack(config, count, batch, seed)
    state = convert_stack(stack)
    return compare_results(stack, state, run_stack_in_flax(stack, options), run_stack_in_torch(stack, state, options))


def compare_results(stack: Stack, state: Arrays, in_flax: StackResults, in_torch: StackResults) -> Verification:
    """Compare every draw by the policy of `mixer_equiv.equivalence.policy`.

    `state` has the weights that torch was given, by its names.
    """
    mismatches = list(find_lost_bits(stack, state))
    rounding, largest = [], {"outputs": 0.0, "gradients": 0.0}
    for i in range(len(stack)):
        found, apart = _compare_one(stack, state, in_flax, in_torch, i)
        if isinstance(found, Mismatch):
            mismatches.append(found)
        elif found == "rounding":
            rounding.append(i)
        else:
            largest = {tier: max(largest[tier], apart[tier]) for tier in largest}
    return Verification(tuple(mismatches), tuple(rounding), **largest)


def _compare_one(
    stack: Stack, state: Arrays, in_flax: StackResults, in_torch: StackResults, draw: int
) -> tuple[Mismatch | Rating, dict[str, float]]:
    """Find a draw's fault, else say "same" or "rounding"; return the residuals of its outputs and gradients, too.

    Float32 is run only for a draw that is over a threshold in float64.
    """
    if not residual(in_flax.outputs[draw, 0], in_flax.outputs[draw, 1]) > POLICIES["outputs"].variation:
        return Mismatch(draw, "outputs", "they hardly move with the image"), {}
    apart, where = _residuals(in_torch, in_flax, draw)
    over = [tier for tier, policy in POLICIES.items() if not apart[tier] <= policy.residual]
    if not over:
        return "same", apart
    single, given = stack.only(draw).astype(np.float32), {}
    for name, array in state.items():
        given[name] = array[draw : draw + 1].astype(np.float32)
    in_float32, _ = _residuals(
        run_stack_in_torch(single, given, RunOptions()), run_stack_in_flax(single, RunOptions()), 0
    )
    for tier in over:
        if POLICIES[tier].rate(apart[tier], in_float32[tier]) != "rounding":
            return Mismatch(draw, tier, f"{where[tier]} by {apart[tier]:.1e}"), apart
    return "rounding", apart


def _residuals(actual: StackResults, expected: StackResults, draw: int) -> tuple[dict[str, float], dict[str, str]]:
    """Compute the residuals of a draw's outputs and gradients, and name the worst arrays."""
    gradients = gradient_residuals(_select(actual.gradients, draw), _select(expected.gradients, draw))
    worst = max(gradients, key=lambda name: gradients[name])
    apart = residual(actual.outputs[draw], expected.outputs[draw])
    return {"outputs": apart, "gradients": gradients[worst]}, {"outputs": "all", "gradients": worst}


def find_lost_bits(stack: Stack, state: Arrays) -> list[Mismatch]:
    """Find the draws whose weights, converted back from torch's names, differ from the drawn ones in any bit."""
    back = relabel_stack(state, TORCH, LINEN, stack.config)
    if not bit_differences(back, stack.params):
        return []
    return [
        Mismatch(i, "weights", ", ".join(names))
        for i in range(len(stack))
        if (names := bit_differences(_select(back, i), _select(stack.params, i)))
    ]


def _select(arrays: Mapping[str, Any], draw: int) -> dict[str, np.ndarray]:
    return {name: array[draw] for name, array in arrays.items()}
