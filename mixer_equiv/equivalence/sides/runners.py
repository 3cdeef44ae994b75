"""`RUNNERS`: run the models of this package on canonical weights, in Flax linen and nnx, torch and NumPy.

`gradients_of` differentiates them. Nothing here knows sides or verdicts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from einops import rearrange

from mixer_equiv.arrays.interop import flatten, require, to_numpy, to_torch, unflatten
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.record.precision import device, jax_full_precision, torch_full_precision
from mixer_equiv.layouts import LINEN, TORCH

Arrays = Mapping[str, np.ndarray]
Stages = dict[str, np.ndarray]
Runner = Callable[[MixerConfig, Arrays, np.ndarray], Stages]


def run_flax(config: MixerConfig, params: Arrays, images: np.ndarray) -> Stages:
    """Run the Flax model, its parts jitted, in the dtype of `images` (batch, height, width, channels)."""
    require("flax", "flax", "running the Flax model")
    from mixer_equiv.models.flax import MlpMixer

    with jax_full_precision():
        taps = apply_in_parts(MlpMixer(config), unflatten(_cast(params, images.dtype)), images, taps=True)
        return _of_dtype({name: np.asarray(tap) for name, tap in taps.items()}, images.dtype)


def apply_in_parts(model: Any, params: Any, images: Any, **kwargs: Any) -> Any:
    """Call `model.apply` of a Flax module whose children are compiled one by one, equal ones once.

    Compiling takes far longer than running, and blocks are equal: a deep network costs as much as one block.
    """
    nn = require("flax.linen", "flax", "running the Flax model")

    def compiled(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        child = context.module
        if context.method_name != "__call__" or not isinstance(child.parent, type(model)):
            return run(*args, **kwargs)
        alone = child.clone(parent=None, name=None)
        return _jitted_child(alone, tuple(kwargs.items()))(child.variables, *args)

    with nn.intercept_methods(compiled):
        return model.apply({"params": params}, images, **kwargs)


@lru_cache(maxsize=64)
def _jitted_child(module: Any, kwargs: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """Compile a child; the result is kept, because many seeds share a config."""
    import jax

    jitted: Callable[..., Any] = jax.jit(lambda variables, *args: module.apply(variables, *args, **dict(kwargs)))
    return jitted


def run_nnx(config: MixerConfig, params: Arrays, images: np.ndarray) -> Stages:
    """Run the Flax nnx model, jitted, in the dtype of `images` (batch, height, width, channels)."""
    with jax_full_precision():
        taps = _jitted_nnx(config)(unflatten(_cast(params, images.dtype)), images)
        return _of_dtype({name: np.asarray(taps[name]) for name in stage_names(config)}, images.dtype)


@lru_cache(maxsize=8)
def _jitted_nnx(config: MixerConfig) -> Callable[..., Stages]:
    jax = require("jax", "flax", "running the nnx model")
    nnx = require("flax.nnx", "flax", "running the nnx model")
    from mixer_equiv.models.nnx import MlpMixer

    def run(params: Any, images: Any) -> Stages:
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(images, taps=True)

    graph, state = nnx.split(nnx.eval_shape(lambda: MlpMixer(config, rngs=nnx.Rngs(0))))
    return jax.jit(run)


def run_torch(config: MixerConfig, params: Arrays, images: np.ndarray) -> Stages:
    """Run the torch model in the dtype of `images` (batch, height, width, channels)."""
    torch = require("torch", "torch", "running the torch model")
    from mixer_equiv.models.torch import MlpMixer

    # On the meta device nothing is initialised, so the user's random state stays as it was.
    with torch.device("meta"):
        model = MlpMixer(config)
    return run_module(model, config, params, images)


def run_module(model: Any, config: MixerConfig, params: Arrays, images: np.ndarray) -> Stages:
    """Run a `mixer_equiv.models.torch.MlpMixer` as it stands, hooks and changes included, on other weights.

    A copy is run; `model` stays as it is.
    """
    require("torch", "torch", "running the torch model")
    state = relabel(_cast(params, images.dtype), LINEN, TORCH, config)
    model = copy.deepcopy(model)
    model.load_state_dict({name: to_torch(array) for name, array in state.items()}, assign=True)
    batch = rearrange(images, "batch height width channels -> batch channels height width")
    with torch_full_precision():
        taps = model.to(device()).eval()(to_torch(batch.copy()).to(device()), taps=True)
    return _of_dtype({name: to_numpy(name, tap) for name, tap in taps.items()}, images.dtype)


def run_reference(config: MixerConfig, params: Arrays, images: np.ndarray) -> Stages:
    """Run the NumPy reference, which computes in float64 whatever the dtype of `images`."""
    from mixer_equiv.models.numpy import MlpMixer

    taps: Stages = MlpMixer(config)(params, images, taps=True)
    return taps


RUNNERS: dict[str, Runner] = {"flax": run_flax, "nnx": run_nnx, "torch": run_torch, "reference": run_reference}
RUNNER_NAMES = {"flax": "Flax", "nnx": "Flax nnx", "torch": "PyTorch", "reference": "NumPy"}


def stage_names(config: MixerConfig) -> list[str]:
    """Names of the stages in the order of computation."""
    blocks = [f"MixerBlock_{i}/{half}" for i in range(config.num_blocks) for half in ("token_mixing", "channel_mixing")]
    return ["stem", *blocks, "pre_head_layer_norm", "pooled", *(["logits"] if config.num_classes else [])]


def _cast(params: Arrays, dtype: np.dtype) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow shows in the result
        return {name: array.astype(dtype) for name, array in params.items()}


def _of_dtype(taps: Stages, dtype: np.dtype) -> Stages:
    wrong = {str(tap.dtype) for tap in taps.values() if tap.dtype != dtype}
    if wrong:
        raise RuntimeError(f"computed in {', '.join(sorted(wrong))} where {dtype} was asked for")
    return taps


def gradients_of(runner: str, config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """Canonical gradients of the sum of the outputs times `cotangent`, in the dtype of `images`.

    `runner` is a key of `RUNNERS`; the Flax linen model stands for nnx too, and the reference computes in float64.
    """
    return _GRADIENTS[runner](config, params, images, cotangent.astype(images.dtype))


def _gradients_of_flax(config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """Canonical gradients of the Flax model, which also stand for those of nnx."""
    jax = require("jax", "flax", "gradients of the Flax model")
    require("flax", "flax", "gradients of the Flax model")
    from mixer_equiv.models.flax import MlpMixer

    def scalar(weights: Any) -> Any:
        return (apply_in_parts(MlpMixer(config), weights, images) * cotangent).sum()

    with jax_full_precision():
        weights = unflatten({name: np.asarray(array, images.dtype) for name, array in params.items()})
        return {name: np.asarray(leaf) for name, leaf in flatten(jax.grad(scalar)(weights))}


def _gradients_of_torch(config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
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


def _gradients_of_reference(config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray) -> Arrays:
    """Canonical gradients of the NumPy reference."""
    from mixer_equiv.models.numpy import MlpMixer

    return MlpMixer(config).gradients(params, images, cotangent)


_GRADIENTS: dict[str, Callable[[MixerConfig, Arrays, np.ndarray, np.ndarray], Arrays]] = {
    "flax": _gradients_of_flax,
    "nnx": _gradients_of_flax,
    "torch": _gradients_of_torch,
    "reference": _gradients_of_reference,
}
