"""Whether two sides have the same gradients, parameter by parameter, in float64.

Weights are only relabelled between them, so gradients are converted by the same layouts. What a
layout has once for several official parameters has the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import flatten, require, unflatten
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.policy import gradient_residuals
from mixer_equiv.equivalence.record.precision import device, jax_full_precision, torch_full_precision
from mixer_equiv.equivalence.report import Gradients
from mixer_equiv.equivalence.sides.frameworks import apply_in_parts
from mixer_equiv.equivalence.sides.side import Subject
from mixer_equiv.layouts import LINEN, TORCH, Layout

Arrays = Mapping[str, np.ndarray]


def compare_gradients(a: Subject, b: Subject, images: np.ndarray, seed: int, threshold: float) -> Gradients:
    """The largest difference of the gradients of a random linear function of the output, of `images`.

    In float32 as well, where it is over the `threshold`. The two must have a `common_space`.
    """
    space = common_space(a, b)
    assert space is not None
    cotangent = random_cotangent(a.config, len(images), seed)

    def apart(dtype: Any) -> dict[str, float]:
        ours, theirs = (gradients_in(space, side, images, cotangent, dtype) for side in (a, b))
        return gradient_residuals(theirs, ours)

    distances = apart(np.float64)
    worst = max(distances, key=lambda name: (not np.isfinite(distances[name]), distances[name]))
    is_over = not distances[worst] <= threshold
    float32 = max(apart(np.float32).values()) if is_over else None
    return Gradients(worst, distances[worst], threshold, len(distances), len(images), float32)


def common_space(a: Subject, b: Subject) -> Layout | None:
    """The layout in which the parameters of both can be held against each other: one's, if it has fewer than the other.

    None where the official parameters are not those of one side, or each has fewer in its own way.
    """
    if any(side.found is not None and side.found.layout is None for side in (a, b)):
        return None
    if all(side.layout.constraints for side in (a, b)) and a.layout.rows != b.layout.rows:
        return None
    return next((side.layout for side in (a, b) if side.layout.constraints), LINEN)


def random_cotangent(config: MixerConfig, count: int, seed: int) -> np.ndarray:
    """What the outputs (count, classes) are multiplied by to make one number of them."""
    width = config.num_classes or config.hidden_dim
    return np.random.default_rng([seed, 3]).standard_normal((count, width))


def gradients_in(
    space: Layout, side: Subject, images: np.ndarray, cotangent: np.ndarray, dtype: Any = np.float64
) -> dict[str, np.ndarray]:
    """Gradients of the sum of the outputs times `cotangent`, computed in `dtype`, by the names of `space`."""
    return dict(_in(space, side, _gradients(side, images.astype(dtype), cotangent.astype(dtype))))


def _in(space: Layout, side: Subject, gradients: Arrays) -> Arrays:
    """Gradients, by the side's own names, by those of `space`."""
    if side.layout is space:
        return gradients
    canonical = relabel(gradients, side.layout, LINEN, side.config)
    if space is LINEN:
        return canonical
    result: dict[str, np.ndarray] = {}
    for name, binding in space.bindings(side.config.num_blocks).items():
        if name in canonical and not binding.is_absent:
            (own,) = relabel({name: canonical[name]}, LINEN, space, side.config, only=[name]).values()
            result[binding.foreign] = result.get(binding.foreign, 0.0) + own
    return result


def _gradients(side: Subject, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """By the names of the side's layout, in the dtype of `images`."""
    if side.candidate is not None and side.found is not None:
        arrays = relabel(side.weights, LINEN, side.layout, side.config)
        return side.candidate.gradients(side.found, arrays, images, cotangent, images.dtype)
    run = _torch if side.program == "torch" else _flax
    gradients = run(side.config, side.weights, images, cotangent)
    return relabel(gradients, LINEN, side.layout, side.config)


def _flax(config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """Canonical gradients of the Flax model, which also stand for those of nnx and of the reference."""
    jax = require("jax", "flax", "gradients of the Flax model")
    require("flax", "flax", "gradients of the Flax model")
    from mixer_equiv.models.flax import MlpMixer

    def scalar(weights: Any) -> Any:
        return (apply_in_parts(MlpMixer(config), weights, images) * cotangent).sum()

    with jax_full_precision():
        weights = unflatten({name: np.asarray(array, images.dtype) for name, array in params.items()})
        return {name: np.asarray(leaf) for name, leaf in flatten(jax.grad(scalar)(weights))}


def _torch(config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """Canonical gradients of the torch model."""
    torch = require("torch", "torch", "gradients of the torch model")
    from mixer_equiv.models.torch import MlpMixer

    with torch.device("meta"):
        model = MlpMixer(config)
    state = relabel({name: np.asarray(array, images.dtype) for name, array in params.items()}, LINEN, TORCH, config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, assign=True)
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device())
    model.to(device())
    with torch_full_precision(), torch.enable_grad():
        parameters = {name: parameter.requires_grad_() for name, parameter in model.named_parameters()}
        output = (model.eval()(batch) * torch.from_numpy(cotangent).to(device())).sum()
        made = torch.autograd.grad(output, list(parameters.values()))
    gradients = {name: gradient.cpu().numpy() for name, gradient in zip(parameters, made, strict=True)}
    return relabel(gradients, TORCH, LINEN, config)
