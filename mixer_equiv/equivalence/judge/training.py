"""Compare two sides after some steps of SGD and of AdamW from the same weights, in float64.

Each side's gradients go through the optimiser of its own framework, torch.optim or optax; the NumPy reference has none,
and takes the other side's. What is minimised is a random linear function of the outputs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import require
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.judge.gradients import gradients_in, random_cotangent
from mixer_equiv.equivalence.mixer.official_program import UNOBSERVABLE
from mixer_equiv.equivalence.policy import Policy
from mixer_equiv.equivalence.record.precision import jax_full_precision
from mixer_equiv.equivalence.report import Training
from mixer_equiv.equivalence.sides.base import WeightedSide
from mixer_equiv.layouts import LINEN, Layout

Arrays = Mapping[str, np.ndarray]
Gradient = Callable[[Arrays], Arrays]
Run = Callable[[Arrays, Gradient], Arrays]

SGD = {"lr": 1e-2, "momentum": 0.9}
ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """One optimiser: its name in reports, in `Policy`, and how each framework makes it."""

    name: str
    threshold: str
    torch: Callable[[Any, Any], Any]
    optax: Callable[[Any], Any]


OPTIMISERS = (
    Optimiser(
        f"SGD (lr {SGD['lr']}, momentum {SGD['momentum']})",
        "sgd",
        lambda optim, parameters: optim.SGD(parameters, **SGD),
        lambda optax: optax.sgd(SGD["lr"], momentum=SGD["momentum"]),
    ),
    Optimiser(
        f"AdamW (lr {ADAMW['lr']}, weight decay {ADAMW['weight_decay']})",
        "adamw",
        lambda optim, parameters: optim.AdamW(parameters, **ADAMW),
        lambda optax: optax.adamw(ADAMW["lr"], *ADAMW["betas"], eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"]),
    ),
)


def compare_training(
    a: WeightedSide, b: WeightedSide, space: Layout, images: np.ndarray, seed: int, steps: int, policy: Policy
) -> Iterator[Training]:
    """Train both sides on `images` (batch, height, width, channels) with each of `OPTIMISERS`, and compare them.

    Parameters are compared by the names of `space`. Those that no output depends on are left out: their gradients
    are rounding noise, which AdamW turns into steps of full size.
    """
    cotangent = random_cotangent(a.config, len(images), seed)
    cotangent /= cotangent.size
    bindings = space.bindings(a.config.num_blocks, head=a.config.num_classes > 0)
    unseen = {bindings[UNOBSERVABLE.format(i=i)].foreign for i in range(a.config.num_blocks)}
    for optimiser in OPTIMISERS:
        ends = [
            _trained(space, side, images, cotangent, partial(_steps_of(side, other), steps=steps, optimiser=optimiser))
            for side, other in ((a, b), (b, a))
        ]
        seen = [name for name in ends[0] if name not in unseen]
        distances = {name: _distance(ends[1][name], ends[0][name]) for name in seen}
        worst = max(seen, key=lambda name: (not np.isfinite(distances[name]), distances[name]))
        threshold = getattr(policy, optimiser.threshold)
        yield Training(optimiser.name, steps, worst, distances[worst], threshold, len(seen), len(images))


def _distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / max(float(np.linalg.norm(expected)), 1e-300))


def _trained(space: Layout, side: WeightedSide, images: np.ndarray, cotangent: np.ndarray, run: Run) -> Arrays:
    """Train the side, and return its weights by the names of `space`."""

    def gradient(arrays: Arrays) -> Arrays:
        weights = relabel(arrays, space, LINEN, side.config)
        return gradients_in(space, side.holding(weights, "in training"), images, cotangent)

    start = {name: np.asarray(array, np.float64) for name, array in side.weights.items()}
    return run(relabel(start, LINEN, space, side.config), gradient)


def _steps_of(side: WeightedSide, other: WeightedSide) -> Callable[..., Arrays]:
    """The steps of the side's framework; for the reference those of the other's, or torch's where it is installed."""
    known = [runner for runner in (side.side.runner, other.side.runner) if runner in STEPS]
    return STEPS[known[0] if known else "torch" if importlib.util.find_spec("torch") else "flax"]


def steps_in_torch(start: Arrays, gradient: Gradient, steps: int, optimiser: Optimiser) -> Arrays:
    torch = require("torch", "torch", "training steps in torch")
    parameters = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    stepping = optimiser.torch(torch.optim, parameters.values())
    for _ in range(steps):
        made = gradient({name: parameter.detach().numpy() for name, parameter in parameters.items()})
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(np.array(made[name]))
        stepping.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def steps_in_optax(start: Arrays, gradient: Gradient, steps: int, optimiser: Optimiser) -> Arrays:
    optax = require("optax", "flax", "training steps in Flax")
    stepping = optimiser.optax(optax)
    with jax_full_precision():
        parameters: Any = dict(start)
        state = stepping.init(parameters)
        for _ in range(steps):
            made = gradient({name: np.asarray(parameter) for name, parameter in parameters.items()})
            updates, state = stepping.update(dict(made), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        return {name: np.asarray(parameter) for name, parameter in parameters.items()}


# By the keys of `RUNNERS` that have an optimiser of their own.
STEPS: dict[str, Callable[..., Arrays]] = {"torch": steps_in_torch, "flax": steps_in_optax, "nnx": steps_in_optax}
