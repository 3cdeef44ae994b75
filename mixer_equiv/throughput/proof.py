"""Whether what is timed computes the right thing. What does not is refused, and never timed.

A program is decided on in float64, in which its outputs (or gradients) must be those of the NumPy
reference (of the other framework) to 1e-12. The very call that is timed, compiled and in its own
dtype, is then held against the same values: its error may be at most `Policy.float32_ratio` times that
of torch's own modules in this dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from mixer_equiv.config import MixerConfig
from mixer_equiv.draws import draw_images, draw_params
from mixer_equiv.equivalence.compare import Policy, gradient_residuals, residual
from mixer_equiv.equivalence.gradients import random_cotangent
from mixer_equiv.equivalence.programs import run_reference
from mixer_equiv.throughput.cases import Cell
from mixer_equiv.throughput.programs import Contestant

POLICY = Policy()

# So many images are different ones; a batch repeats them.
IMAGES = 2

# A step of this rate moves parameters so far that what they were is no part of the rounding.
RATE = 1024.0

# Made of torch's modules alone: what ours fuse must not be measured by itself.
YARDSTICK = Contestant("tutorial")


@dataclasses.dataclass(frozen=True)
class Proof:
    """`exact` is the float64 residual of the program, `error` that of the call in its own dtype, of at most `bound`.

    `refused` says what is wrong, None where nothing is.
    """

    exact: float
    error: float
    bound: float
    refused: str | None


def call_of(contestant: Contestant, cell: Cell, seed: int, first: int = 0) -> Any:
    """The contestant in the cell, ready to be called, on random weights and a batch of two images in turns.

    `first` is the image that the batch begins with.
    """
    make: Any
    if contestant.program.framework == "torch":
        from mixer_equiv.throughput.in_torch import TorchCall

        make = TorchCall
    else:
        from mixer_equiv.throughput.in_jax import JaxCall

        make = JaxCall
    params, images, cotangent = inputs(cell.config, seed)
    own = (first + np.arange(cell.batch)) % IMAGES
    return make(contestant, cell, params, images[own], cotangent[own])


def inputs(config: MixerConfig, seed: int) -> tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]:
    """Float64 canonical weights, images (2, height, width, channels) and cotangents (2, classes)."""
    return (
        draw_params(config, seed),
        draw_images(config, seed + 1, count=IMAGES),
        random_cotangent(config, IMAGES, seed),
    )


class Prover:
    """Proves contestants on one draw; what serves several cells is computed once."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._logits = cache(self._logits_of)
        self._gradients = cache(self._gradients_of)
        self._exact = cache(self._exact_of)
        self._bound = cache(self._bound_of)

    def prove(self, contestant: Contestant, cell: Cell, call: Any) -> Proof:
        """What `call` computes, which is the contestant in the cell, and its program in float64."""
        exact = self._exact(contestant.eager, cell.config, cell.mode)
        error, bound = self._error(call, contestant, cell), self._bound(cell)
        refused = None
        if not exact <= POLICY.residual:
            refused = f"another function: float64 residual {exact:.1e}, at most {POLICY.residual:g} is allowed"
        elif not error <= bound:
            refused = f"inexact: its error in {cell.dtype} is {error:.1e}, at most {bound:.1e} is allowed"
        return Proof(exact, error, bound, refused)

    def _exact_of(self, contestant: Contestant, config: MixerConfig, mode: str) -> float:
        cell = Cell(config, "float64", IMAGES, "cpu", mode)
        return self._error(call_of(contestant, cell, self.seed), contestant, cell)

    def _bound_of(self, cell: Cell) -> float:
        """What errors of the cell's dtype may be: some times that of torch's own modules."""
        if cell.dtype == "float64":
            return POLICY.residual
        return POLICY.float32_ratio * self._error(call_of(YARDSTICK, cell, self.seed), YARDSTICK, cell)

    def _error(self, call: Any, contestant: Contestant, cell: Cell) -> float:
        """How far what a call computes is from the truth."""
        own = np.arange(cell.batch) % IMAGES
        if cell.mode == "inference":
            return residual(call.logits().astype(np.float64), self._logits(cell.config)[own])
        # Each framework's gradients are held against the other's.
        judge = "flax" if contestant.program.framework == "torch" else "torch"
        each = self._gradients(judge, cell.config)
        counts = np.bincount(own, minlength=IMAGES)
        truth = {name: sum(n * g[name] for n, g in zip(counts, each, strict=True)) for name in each[0]}
        return max(gradient_residuals(call.updates(RATE), truth).values())

    def _logits_of(self, config: MixerConfig) -> np.ndarray:
        params, images, _ = inputs(config, self.seed)
        return list(run_reference(config, params, images).values())[-1]

    def _gradients_of(self, judge: str, config: MixerConfig) -> list[Mapping[str, np.ndarray]]:
        """Float64 gradients of each of the images by another framework's official program."""
        cell = Cell(config, "float64", 1, "cpu", "training")
        return [call_of(Contestant(judge), cell, self.seed, image).updates(RATE) for image in range(IMAGES)]
