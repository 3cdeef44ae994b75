"""Faults put into one draw of a stack, which `compare` must find in that draw, and in no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.deep import Verification, compare
from benchmarks.programs import Ways, run_flax, run_torch
from benchmarks.stacks import Arrays, draw, hand_over
from mixer_equiv import MixerConfig

# A weight at the beginning of the network, by its canonical name and torch's.
KERNEL = "MixerBlock_0/token_mixing/Dense_0/kernel"
WEIGHT = "blocks.0.token_mixing.dense_0.weight"

CONVENTIONS = {"the wrong GELU": {"activation": "gelu"}, "the wrong eps": {"layer_norm_eps": 1e-5}}


def misses(config: MixerConfig, count: int, batch: int, seed: int, ways: Ways) -> list[str]:
    """Which planted faults were not found exactly where they are, in words."""
    planted = np.random.default_rng([seed, 2]).integers(count)
    result = []
    for name, tiers, seen in _trials(config, count, batch, seed, ways, int(planted)):
        found = {(finding.draw, finding.tier) for finding in seen.findings}
        if found != {(planted, tier) for tier in tiers}:
            result.append(f"{name} in draw {planted} of {config}: {seen.findings or 'nothing was found'}")
    return result


def _trials(
    config: MixerConfig, count: int, batch: int, seed: int, ways: Ways, planted: int
) -> Iterator[tuple[str, set[str], Verification]]:
    """Each fault by name, the tiers that must see it, and what was seen. The first is none."""
    stack = draw(config, count, batch, seed)
    state = hand_over(stack)
    in_flax, in_torch = run_flax(stack, ways), run_torch(stack, state, ways)
    yield "nothing", set(), compare(stack, state, in_flax, in_torch)

    off = _with_weight(state, planted, lambda weight: np.nextafter(weight, np.inf))
    yield "a weight off by one ulp", {"weights"}, compare(stack, off, in_flax, in_torch)

    alone, own = stack.only(planted), {name: array[planted : planted + 1] for name, array in state.items()}
    other = run_torch(alone, _with_weight(own, 0, lambda weight: weight * (1 + 1e-6)), ways)
    yield (
        "a weight off by a millionth, unseen by the weights' own comparison",
        {"outputs"},
        compare(stack, state, in_flax, in_torch.with_draw(planted, other)),
    )

    for name, changes in CONVENTIONS.items():
        other = run_torch(dataclasses.replace(alone, config=config.replace(**changes)), own, ways)
        yield name, {"outputs"}, compare(stack, state, in_flax, in_torch.with_draw(planted, other))

    gradients = {name: array.copy() for name, array in in_torch.gradients.items()}
    gradients[KERNEL][planted] *= 1 + 1e-6
    other = dataclasses.replace(in_torch, gradients=gradients)
    yield "a gradient off by a millionth", {"gradients"}, compare(stack, state, in_flax, other)


def _with_weight(state: Arrays, draw: int, change: Callable[[float], float]) -> dict[str, np.ndarray]:
    """A copy of torch's weights in which one number of one draw is changed."""
    weight = state[WEIGHT].copy()
    weight[draw, 0, 0] = change(weight[draw, 0, 0])
    return {**state, WEIGHT: weight}
