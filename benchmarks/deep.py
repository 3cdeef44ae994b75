"""Deep verification of a stack of draws: weights bit by bit, outputs and gradients in float64, Flax against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.programs import Results, Ways, run_flax, run_torch
from benchmarks.stacks import Arrays, Stack, draw, hand_over, relabelled
from mixer_equiv import MixerConfig
from mixer_equiv.checkpoints.differences import differing
from mixer_equiv.equivalence.policy import Policy, Rating, gradient_residuals, residual
from mixer_equiv.layouts import LINEN, TORCH

POLICY = Policy()
# Gradients are judged as outputs are: rounding is told from a difference by float32.
POLICIES = {"outputs": POLICY, "gradients": dataclasses.replace(POLICY, residual=POLICY.gradients)}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong with a draw: in its `weights`, `outputs` or `gradients`, and where or how far."""

    draw: int
    tier: str
    what: str


@dataclasses.dataclass(frozen=True)
class Verification:
    """What came out for a stack. `rounding` are draws that only float32 showed to be right.

    `outputs` and `gradients` are the largest residuals of the draws that are neither rounding nor findings.
    """

    findings: tuple[Finding, ...]
    rounding: tuple[int, ...]
    outputs: float
    gradients: float


def verify_draws(config: MixerConfig, count: int, batch: int, seed: int, ways: Ways) -> Verification:
    """Draw, hand over, run and compare. This is what is timed."""
    stack = draw(config, count, batch, seed)
    state = hand_over(stack)
    return compare(stack, state, run_flax(stack, ways), run_torch(stack, state, ways))


def compare(stack: Stack, state: Arrays, in_flax: Results, in_torch: Results) -> Verification:
    """Every draw by the policy of `mixer_equiv.equivalence.policy`.

    `state` are the weights that torch was given, by its names.
    """
    findings = list(lost_bits(stack, state))
    rounding, largest = [], {"outputs": 0.0, "gradients": 0.0}
    for i in range(len(stack)):
        found, apart = _compared(stack, state, in_flax, in_torch, i)
        if isinstance(found, Finding):
            findings.append(found)
        elif found == "rounding":
            rounding.append(i)
        else:
            largest = {tier: max(largest[tier], apart[tier]) for tier in largest}
    return Verification(tuple(findings), tuple(rounding), **largest)


def _compared(
    stack: Stack, state: Arrays, in_flax: Results, in_torch: Results, draw: int
) -> tuple[Finding | Rating, dict[str, float]]:
    """What is wrong with a draw, else "same" or "rounding"; and how far its outputs and gradients are apart.

    Float32 is only run for a draw that is over a threshold in float64.
    """
    if not residual(in_flax.outputs[draw, 0], in_flax.outputs[draw, 1]) > POLICY.variation:
        return Finding(draw, "outputs", "they hardly move with the image"), {}
    apart, where = _apart(in_torch, in_flax, draw)
    over = [tier for tier, policy in POLICIES.items() if not apart[tier] <= policy.residual]
    if not over:
        return "same", apart
    single, given = stack.only(draw).astype(np.float32), {}
    for name, array in state.items():
        given[name] = array[draw : draw + 1].astype(np.float32)
    in_float32, _ = _apart(run_torch(single, given, Ways()), run_flax(single, Ways()), 0)
    for tier in over:
        if POLICIES[tier].rate(apart[tier], in_float32[tier]) != "rounding":
            return Finding(draw, tier, f"{where[tier]} by {apart[tier]:.1e}"), apart
    return "rounding", apart


def _apart(actual: Results, expected: Results, draw: int) -> tuple[dict[str, float], dict[str, str]]:
    """How far the outputs and gradients of a draw are apart, and where most."""
    gradients = gradient_residuals(_draw(actual.gradients, draw), _draw(expected.gradients, draw))
    worst = max(gradients, key=lambda name: gradients[name])
    apart = residual(actual.outputs[draw], expected.outputs[draw])
    return {"outputs": apart, "gradients": gradients[worst]}, {"outputs": "all", "gradients": worst}


def lost_bits(stack: Stack, state: Arrays) -> list[Finding]:
    """Draws whose weights, brought back from torch's names, are not what was drawn in every bit."""
    back = relabelled(state, TORCH, LINEN, stack.config)
    if not differing(back, stack.params):
        return []
    return [
        Finding(i, "weights", ", ".join(names))
        for i in range(len(stack))
        if (names := differing(_draw(back, i), _draw(stack.params, i)))
    ]


def _draw(arrays: Mapping[str, Any], draw: int) -> dict[str, np.ndarray]:
    return {name: array[draw] for name, array in arrays.items()}
