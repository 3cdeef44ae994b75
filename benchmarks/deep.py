"""Deep verification of a stack of draws: weights bit by bit, outputs and gradients in float64, Flax against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.programs import Results, Ways, run_flax, run_torch
from benchmarks.stacks import Arrays, Stack, draw, hand_over, relabelled
from mixer_equiv import MixerConfig
from mixer_equiv.equivalence import programs
from mixer_equiv.equivalence.compare import Policy, differing, gradient_residuals, residual
from mixer_equiv.layouts import LINEN, TORCH

POLICY = Policy()


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
    """Every draw by the policy of `mixer_equiv.equivalence.compare`.

    `state` are the weights that torch was given, by its names.
    """
    findings = list(lost_bits(stack, state))
    rounding, outputs, gradients = [], [], []
    for i in range(len(stack)):
        ours, theirs = in_torch.outputs[i], in_flax.outputs[i]
        apart = residual(ours, theirs)
        rating = "same" if apart <= POLICY.residual else POLICY.rate(apart, _in_float32(stack.only(i), state, i))
        furthest = gradient_residuals(_draw(in_torch.gradients, i), _draw(in_flax.gradients, i))
        worst = max(furthest, key=lambda name: furthest[name])
        if not residual(theirs[0], theirs[1]) > POLICY.variation:
            findings.append(Finding(i, "outputs", "they hardly move with the image"))
        elif rating == "rounding":
            rounding.append(i)
        elif rating != "same":
            findings.append(Finding(i, "outputs", f"residual {apart:.1e}"))
        elif not furthest[worst] <= POLICY.gradients:
            findings.append(Finding(i, "gradients", f"{worst} by {furthest[worst]:.1e}"))
        else:
            outputs.append(apart)
            gradients.append(furthest[worst])
    return Verification(tuple(findings), tuple(rounding), max(outputs, default=0.0), max(gradients, default=0.0))


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


def _in_float32(stack: Stack, state: Arrays, draw: int) -> float:
    """The residual of one draw in float32, of the weights that each side was given."""
    given = relabelled({name: array[draw : draw + 1] for name, array in state.items()}, TORCH, LINEN, stack.config)
    images = stack.images[0].astype(np.float32)
    last = "logits" if stack.config.num_classes else "pooled"
    ours = programs.run_torch(stack.config, _draw(given, 0), images)[last]
    return residual(ours, programs.run_flax(stack.config, _draw(stack.params, 0), images)[last])
