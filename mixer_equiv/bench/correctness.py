"""The correctness of every call that is timed. A wrong call is refused, and never timed.

An entry is decided on in float64: its outputs (or gradients) must be those of the NumPy reference (of the other
framework) to 1e-12. Then the very call that is timed, compiled and in its own dtype, is held against the same values:
its errors may be at most `Policy.float32_ratio` times those of the framework's own modules in this dtype. TF32 and half
precision show little, so there the call must pass in float32 too.
All that is done with two sets of weights. In the second, the residual stream is so faint that the eps of every
LayerNorm is as large as the variance: a wrong eps is otherwise less than rounding where there is no float64.
Start reading at `Checker.check`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from mixer_equiv.bench.calls import DISTINCT_IMAGES, STREAM_SCALES, Call, batch_order, draw_inputs, make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.policy import Policy, gradient_residuals, residual
from mixer_equiv.equivalence.sides.runners import run_reference

THRESHOLDS = Policy()

# Gradients are read off an SGD update. The learning rate is huge, so that the old value is negligible in
# `(old - new) / rate`.
SGD_RATE = 1024.0

# The dtypes in which errors show so little that float32 is checked too.
COARSE_DTYPES = ("tf32", "bfloat16", "float16")

# Two units in the last place of float32. A smaller error is chance, and measures nothing.
SMALLEST_ERROR = 2.0**-22

# Made of the framework's own modules alone, so that no fused operation of ours is measured by itself.
# JAX adds up gradients of half precision in half precision, and so has a yardstick of its own.
YARDSTICKS = {"torch": Entry("tutorial"), "jax": Entry("official")}


class ErrorOf(NamedTuple):
    """The draw that an error belongs to, and the array: the logits, or a parameter's gradient."""

    draw: str
    array: str


@dataclasses.dataclass(frozen=True)
class Correctness:
    """The float64 residual `exact` of the entry; the `error` of the call in its own dtype, and its `bound`.

    In training, all are of the gradient that comes nearest to its bound. `refused` says why the call is wrong; it is
    None where the call is right.
    """

    exact: float
    error: float
    bound: float
    refused: str | None


class Checker:
    """Checks calls on the draws of one seed; a result that several cells need is computed once."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self._logits = cache(self._reference_logits)
        self._gradients = cache(self._other_gradients)
        self._exact = cache(self._exact_residual)
        self._float32_refusal = cache(self._refusal_in_float32)
        self._bounds = cache(self._error_bounds)

    def check(self, entry: Entry, cell: Cell, call: Call) -> Correctness:
        """Check `call`, made of the entry in the cell, and the entry itself in float64."""
        exact = self._exact(entry.eager, cell.config, cell.mode)
        error, bound = self._nearest_to_bound(call, entry, cell)
        refused = None
        if other := _dtype_refusal(call, cell):
            refused = other
        elif not exact <= THRESHOLDS.residual:
            refused = f"another function: float64 residual {exact:.1e}, at most {THRESHOLDS.residual:g} is allowed"
        elif not error <= bound:
            refused = _error_refusal(cell, error, bound)
        elif cell.dtype in COARSE_DTYPES:
            refused = self._float32_refusal(entry, cell.config, cell.mode, cell.device)
        return Correctness(exact, error, bound, refused)

    def _exact_residual(self, entry: Entry, config: MixerConfig, mode: str) -> float:
        cell = Cell(config, "float64", DISTINCT_IMAGES, "cpu", mode)
        return max(self._errors(make_call(entry, cell, self.seed), entry, cell).values())

    def _refusal_in_float32(self, entry: Entry, config: MixerConfig, mode: str, device: str) -> str | None:
        """Say why the entry, run in the same way, is inexact in float32; None if it is exact enough."""
        cell = Cell(config, "float32", DISTINCT_IMAGES, device, mode)
        error, bound = self._nearest_to_bound(make_call(entry, cell, self.seed), entry, cell)
        return None if error <= bound else _error_refusal(cell, error, bound)

    def _nearest_to_bound(self, call: Call, entry: Entry, cell: Cell) -> tuple[float, float]:
        """Find the error of a call that takes most of its bound, and that bound.

        Afterwards the call has the weights of the usual draw.
        """
        errors = self._errors(call, entry, cell)
        if cell.dtype == "float64":
            bounds: Mapping[ErrorOf, float] = dict.fromkeys(errors, THRESHOLDS.residual)
        else:
            bounds = self._bounds(cell, entry.contestant.framework)
        return max(((errors[key], bounds[key]) for key in errors), key=lambda pair: _share_of_bound(*pair))

    def _error_bounds(self, cell: Cell, framework: str) -> Mapping[ErrorOf, float]:
        """Bound the errors in the cell's dtype by a multiple of those of the framework's own modules.

        A yardstick's error may be small by chance. Its bound is never below the one from the median error with the
        same weights, nor below the rounding that float32 cannot avoid: gradients are sums over all tokens of a batch,
        which torch's eager kernels add up in a tree and compiled ones in a row.
        """
        terms = cell.batch * cell.config.num_tokens if cell.mode == "training" else 1
        least = max(SMALLEST_ERROR, terms**0.5 * 2.0**-24)
        yardstick = YARDSTICKS[framework]
        errors = self._errors(make_call(yardstick, cell, self.seed), yardstick, cell)
        usual = {draw: float(np.median([errors[key] for key in errors if key.draw == draw])) for draw in STREAM_SCALES}
        return {key: THRESHOLDS.float32_ratio * max(error, usual[key.draw], least) for key, error in errors.items()}

    def _errors(self, call: Call, entry: Entry, cell: Cell) -> dict[ErrorOf, float]:
        """Measure how far a call is from the truth on every draw, in the logits or in each gradient."""
        errors: dict[ErrorOf, float] = {}
        for draw in ("faint", "usual"):
            call.load(draw_inputs(cell.config, self.seed, draw).params)
            errors |= {ErrorOf(draw, name): error for name, error in self._draw_errors(draw, call, entry, cell).items()}
        return errors

    def _draw_errors(self, draw: str, call: Call, entry: Entry, cell: Cell) -> Mapping[str, float]:
        order = batch_order(cell.batch)
        if cell.mode == "inference":
            return {"logits": residual(call.logits().astype(np.float64), self._logits(cell.config, draw)[order])}
        # Each framework's gradients are held against the other's.
        judge = "flax" if entry.contestant.framework == "torch" else "torch"
        each = self._gradients(judge, cell.config, draw)
        counts = np.bincount(order, minlength=DISTINCT_IMAGES)
        truth = {name: sum(n * g[name] for n, g in zip(counts, each, strict=True)) for name in each[0]}
        return gradient_residuals(call.updates(SGD_RATE), truth)

    def _reference_logits(self, config: MixerConfig, draw: str) -> np.ndarray:
        params, images, _ = draw_inputs(config, self.seed, draw)
        return list(run_reference(config, params, images).values())[-1]

    def _other_gradients(self, judge: str, config: MixerConfig, draw: str) -> list[Mapping[str, np.ndarray]]:
        """Compute the float64 gradients of each image by another framework's official program."""
        cell = Cell(config, "float64", 1, "cpu", "training")
        return [
            make_call(Entry(judge), cell, self.seed, image, draw).updates(SGD_RATE) for image in range(DISTINCT_IMAGES)
        ]


def _dtype_refusal(call: Call, cell: Cell) -> str | None:
    """Say which wrong dtype the logits have, if they do."""
    if cell.mode != "inference" or (found := str(call.logits().dtype)) == cell.storage:
        return None
    return f"its logits are {found}, where all are to compute in {cell.storage}"


def _share_of_bound(error: float, bound: float) -> float:
    if not np.isfinite(error):
        return np.inf
    return error / bound if bound else np.inf if error else 0.0


def _error_refusal(cell: Cell, error: float, bound: float) -> str:
    return f"inexact: its error in {cell.dtype} is {error:.1e}, at most {bound:.1e} is allowed"
