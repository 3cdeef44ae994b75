"""Whether what is timed computes the right thing. What does not is refused, and never timed.

A program is decided on in float64, in which its outputs (or gradients) must be those of the NumPy
reference (of the other framework) to 1e-12. The very call that is timed, compiled and in its own
dtype, is then held against the same values: its errors may be at most `Policy.float32_ratio` times those
of the framework's own modules in this dtype. In tf32 and half precision, which show little, it must pass in
float32 too.
All that with two sets of weights: in the second the stream is so faint that the eps of every LayerNorm
is as large as the variance, because a wrong eps is otherwise less than rounding where there is no float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Contestant
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.judge.gradients import random_cotangent
from mixer_equiv.equivalence.policy import Policy, gradient_residuals, residual
from mixer_equiv.equivalence.sides.frameworks import run_reference
from mixer_equiv.random_weights import draw_images, draw_params

POLICY = Policy()

# So many images are different ones; a batch repeats them in no order that a program could use.
IMAGES = 2

# A step of this rate moves parameters so far that what they were is no part of the rounding.
RATE = 1024.0

ROUGH = ("tf32", "bfloat16", "float16")

# What the stem and the ends of all MLPs, which add up to the stream, are multiplied by, over the root of the eps.
DRAWS = {"usual": None, "faint": 2.0}

# Two units in the last place of float32: less is chance, and no measure.
LEAST = 2.0**-22

# Made of the framework's own modules alone: what ours fuse must not be measured by itself.
# JAX adds up gradients of half precision in half precision, and so has its own.
YARDSTICKS = {"torch": Contestant("tutorial"), "jax": Contestant("official")}


# Of an error: the draw, and what it is of.
Key = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Proof:
    """`exact` is the float64 residual of the program, `error` that of the call in its own dtype, of at most `bound`.

    In training they are those of the gradient which comes nearest to its bound. `refused` says what is wrong, None
    where nothing is.
    """

    exact: float
    error: float
    bound: float
    refused: str | None


def call_of(contestant: Contestant, cell: Cell, seed: int, first: int = 0, draw: str = "usual") -> Any:
    """The contestant in the cell, ready to be called, on random weights and a batch of `IMAGES` images.

    `first` is the image that the batch begins with, `draw` one of `DRAWS`.
    """
    make: Any
    if contestant.program.framework == "torch":
        from mixer_equiv.bench.in_torch import TorchCall

        make = TorchCall
    else:
        from mixer_equiv.bench.in_jax import JaxCall

        make = JaxCall
    params, images, cotangent = inputs(cell.config, seed, draw)
    own = order(cell.batch, first)
    return make(contestant, cell, params, images[own], cotangent[own])


def order(batch: int, first: int = 0) -> np.ndarray:
    """Which images a batch is made of: each in turn, and then any."""
    drawn = np.random.default_rng(batch).integers(IMAGES, size=batch)
    turns = np.arange(min(batch, IMAGES))
    drawn[: len(turns)] = turns
    return (drawn + first) % IMAGES


def inputs(
    config: MixerConfig, seed: int, draw: str = "usual"
) -> tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray]:
    """Float64 canonical weights, images (2, height, width, channels) and cotangents (2, classes)."""
    params, factor = draw_params(config, seed), DRAWS[draw]
    if factor is not None:
        factor *= max(config.layer_norm_eps, 1e-6) ** 0.5
        ends = [name for name in params if name.startswith("stem/") or "/Dense_1/" in name]
        params |= {name: factor * params[name] for name in ends}
    return (
        params,
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
        self._single = cache(self._single_of)
        self._bounds = cache(self._bounds_of)

    def prove(self, contestant: Contestant, cell: Cell, call: Any) -> Proof:
        """What `call` computes, which is the contestant in the cell, and its program in float64."""
        exact = self._exact(contestant.eager, cell.config, cell.mode)
        error, bound = self._nearest(call, contestant, cell)
        refused = None
        if other := _of_another_dtype(call, cell):
            refused = other
        elif not exact <= POLICY.residual:
            refused = f"another function: float64 residual {exact:.1e}, at most {POLICY.residual:g} is allowed"
        elif not error <= bound:
            refused = _inexact(cell, error, bound)
        elif cell.dtype in ROUGH:
            refused = self._single(contestant, cell.config, cell.mode, cell.device)
        return Proof(exact, error, bound, refused)

    def _exact_of(self, contestant: Contestant, config: MixerConfig, mode: str) -> float:
        cell = Cell(config, "float64", IMAGES, "cpu", mode)
        return max(self._errors(call_of(contestant, cell, self.seed), contestant, cell).values())

    def _single_of(self, contestant: Contestant, config: MixerConfig, mode: str, device: str) -> str | None:
        """Why the contestant is inexact in float32, run in the same way, if it is."""
        cell = Cell(config, "float32", IMAGES, device, mode)
        error, bound = self._nearest(call_of(contestant, cell, self.seed), contestant, cell)
        return None if error <= bound else _inexact(cell, error, bound)

    def _nearest(self, call: Any, contestant: Contestant, cell: Cell) -> tuple[float, float]:
        """Of all errors of a call the one that is largest in its bound's measure, and that bound.

        The weights are those of the usual draw afterwards.
        """
        errors = self._errors(call, contestant, cell)
        if cell.dtype == "float64":
            bounds: Mapping[Key, float] = dict.fromkeys(errors, POLICY.residual)
        else:
            bounds = self._bounds(cell, contestant.program.framework)
        return max(((errors[name], bounds[name]) for name in errors), key=lambda pair: _share(*pair))

    def _bounds_of(self, cell: Cell, framework: str) -> Mapping[Key, float]:
        """What errors of the cell's dtype may be: some times those of the framework's own modules.

        One that is small by chance bounds no less than the median of all with the same weights does, nor than what
        float32 cannot do without: gradients are sums over all tokens of a batch, which torch's eager kernels add up
        in a tree and compiled ones in a row.
        """
        terms = cell.batch * cell.config.num_tokens if cell.mode == "training" else 1
        least = max(LEAST, terms**0.5 * 2.0**-24)
        yardstick = YARDSTICKS[framework]
        errors = self._errors(call_of(yardstick, cell, self.seed), yardstick, cell)
        usual = {draw: float(np.median([errors[key] for key in errors if key[0] == draw])) for draw in DRAWS}
        return {key: POLICY.float32_ratio * max(error, usual[key[0]], least) for key, error in errors.items()}

    def _errors(self, call: Any, contestant: Contestant, cell: Cell) -> dict[Key, float]:
        """How far what a call computes is from the truth, by the draw and what it is: the logits, or each gradient."""
        errors: dict[Key, float] = {}
        for draw in ("faint", "usual"):
            call.load(inputs(cell.config, self.seed, draw)[0])
            errors |= {(draw, name): error for name, error in self._errors_in(draw, call, contestant, cell).items()}
        return errors

    def _errors_in(self, draw: str, call: Any, contestant: Contestant, cell: Cell) -> Mapping[str, float]:
        own = order(cell.batch)
        if cell.mode == "inference":
            return {"logits": residual(call.logits().astype(np.float64), self._logits(cell.config, draw)[own])}
        # Each framework's gradients are held against the other's.
        judge = "flax" if contestant.program.framework == "torch" else "torch"
        each = self._gradients(judge, cell.config, draw)
        counts = np.bincount(own, minlength=IMAGES)
        truth = {name: sum(n * g[name] for n, g in zip(counts, each, strict=True)) for name in each[0]}
        return gradient_residuals(call.updates(RATE), truth)

    def _logits_of(self, config: MixerConfig, draw: str) -> np.ndarray:
        params, images, _ = inputs(config, self.seed, draw)
        return list(run_reference(config, params, images).values())[-1]

    def _gradients_of(self, judge: str, config: MixerConfig, draw: str) -> list[Mapping[str, np.ndarray]]:
        """Float64 gradients of each of the images by another framework's official program."""
        cell = Cell(config, "float64", 1, "cpu", "training")
        return [call_of(Contestant(judge), cell, self.seed, image, draw).updates(RATE) for image in range(IMAGES)]


def _of_another_dtype(call: Any, cell: Cell) -> str | None:
    """What is wrong with the logits' dtype, if it is."""
    if cell.mode != "inference" or (found := str(call.logits().dtype)) == cell.storage:
        return None
    return f"its logits are {found}, where all are to compute in {cell.storage}"


def _share(error: float, bound: float) -> float:
    """How much of its bound an error takes."""
    if not np.isfinite(error):
        return np.inf
    return error / bound if bound else np.inf if error else 0.0


def _inexact(cell: Cell, error: float, bound: float) -> str:
    return f"inexact: its error in {cell.dtype} is {error:.1e}, at most {bound:.1e} is allowed"
