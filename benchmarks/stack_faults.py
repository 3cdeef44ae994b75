"""Faults planted into one draw of a stack. `compare_results` must find each in that draw, and in no other.

Start reading at `missed_faults`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.stack_runs import RunOptions, run_stack_in_flax, run_stack_in_torch
from benchmarks.stack_verification import Verification, compare_results
from benchmarks.stacks import Arrays, convert_stack, draw_stack
from mixer_equiv import MixerConfig

# A weight at the beginning of the network, by its canonical name and by torch's.
CANONICAL_NAME = "MixerBlock_0/token_mixing/Dense_0/kernel"
TORCH_NAME = "blocks.0.token_mixing.dense_0.weight"

WRONG_CONVENTIONS: dict[str, dict[str, Any]] = {
    "the wrong GELU": {"activation": "gelu"},
    "the wrong eps": {"layer_norm_eps": 1e-5},
}


def missed_faults(config: MixerConfig, count: int, batch: int, seed: int, options: RunOptions) -> list[str]:
    """Plant every fault, and say in words which were not found exactly where they are."""
    planted = int(np.random.default_rng([seed, 2]).integers(count))
    result = []
    for name, tiers, seen in _plant(config, count, batch, seed, options, planted):
        found = {(mismatch.draw, mismatch.tier) for mismatch in seen.mismatches}
        if found != {(planted, tier) for tier in tiers}:
            result.append(f"{name} in draw {planted} of {config}: {seen.mismatches or 'nothing was found'}")
    return result


def _plant(
    config: MixerConfig, count: int, batch: int, seed: int, options: RunOptions, planted: int
) -> Iterator[tuple[str, set[str], Verification]]:
    """Yield each fault's name, the tiers that must find it, and the verification. The first is no fault at all."""
    stack = draw_stack(config, count, batch, seed)
    state = convert_stack(stack)
    in_flax, in_torch = run_stack_in_flax(stack, options), run_stack_in_torch(stack, state, options)
    yield "nothing", set(), compare_results(stack, state, in_flax, in_torch)

    off = _with_weight(state, planted, lambda weight: np.nextafter(weight, np.inf))
    yield "a weight off by one ulp", {"weights"}, compare_results(stack, off, in_flax, in_torch)

    alone, own = stack.only(planted), {name: array[planted : planted + 1] for name, array in state.items()}
    other = run_stack_in_torch(alone, _with_weight(own, 0, lambda weight: weight * (1 + 1e-6)), options)
    yield (
        "a weight off by a millionth, unseen by the weights' own comparison",
        {"outputs"},
        compare_results(stack, state, in_flax, in_torch.with_draw(planted, other)),
    )

    for name, changes in WRONG_CONVENTIONS.items():
        other = run_stack_in_torch(dataclasses.replace(alone, config=config.replace(**changes)), own, options)
        yield name, {"outputs"}, compare_results(stack, state, in_flax, in_torch.with_draw(planted, other))

    gradients = {name: array.copy() for name, array in in_torch.gradients.items()}
    gradients[CANONICAL_NAME][planted] *= 1 + 1e-6
    other = dataclasses.replace(in_torch, gradients=gradients)
    yield "a gradient off by a millionth", {"gradients"}, compare_results(stack, state, in_flax, other)


def _with_weight(state: Arrays, draw: int, change: Callable[[float], float]) -> dict[str, np.ndarray]:
    """Copy torch's weights, and change one number of one draw."""
    weight = state[TORCH_NAME].copy()
    weight[draw, 0, 0] = change(weight[draw, 0, 0])
    return {**state, TORCH_NAME: weight}
