"""Our model in every formulation and framework as one kind of function, compiled once for a config and kept.

A `ModelFunction` maps canonical weights and images (batch, height, width, channels) to outputs (batch, classes) or
features (batch, hidden), and to the canonical gradients of their product with a cotangent. Tests use it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.xla_options import cheap_jit
from mixer_equiv import Formulation, MixerConfig, operations
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.sides.runners import stage_names
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.layouts import LINEN, TORCH
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.nnx import MlpMixer as NnxMixer
from mixer_equiv.models.numpy import MlpMixer as ReferenceMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ModelFunction:
    """One of our models in a formulation; `fast` is Flax's fast variance. It computes in the dtype of the images."""

    framework: str
    formulation: Formulation = FORMULATIONS[0]
    fast: bool = True

    def __str__(self) -> str:
        return f"{self.framework} ({self.formulation}{'' if self.fast else ', two passes'})"

    def __call__(self, config: MixerConfig, params: Arrays, images: np.ndarray) -> np.ndarray:
        """Compute the outputs."""
        outputs = _FORWARD[self.framework](self, config, _cast(params, images.dtype), images)
        assert outputs.dtype == images.dtype
        return outputs

    def taps(self, config: MixerConfig, params: Arrays, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute every stage of the residual stream (batch, tokens, hidden), the features and the outputs."""
        made: Mapping[str, Any] = _TAPS[self.framework](self, config, _cast(params, images.dtype), images)
        return {name: np.asarray(made[name]) for name in stage_names(config)}

    def gradients(
        self, config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute the outputs, and the gradients of the sum of outputs times `cotangent`."""
        made = _GRADIENTS[self.framework](self, config, _cast(params, images.dtype), images, cotangent)
        assert all(array.dtype == images.dtype for array in (made[0], *made[1].values()))
        return made


REFERENCE = ModelFunction("reference")
TORCH_FUNCTIONS = tuple(ModelFunction("torch", formulation) for formulation in FORMULATIONS)
FLAX_FUNCTIONS = tuple(ModelFunction("flax", formulation) for formulation in FORMULATIONS)
NNX_FUNCTION = ModelFunction("nnx")


def _cast(params: Arrays, dtype: np.dtype) -> dict[str, np.ndarray]:
    return {name: array.astype(dtype, copy=False) for name, array in params.items()}


# torch


class _Uninitialised(TorchMixer):
    """A model without weights of its own; `functional_call` gives them."""

    def reset_parameters(self) -> None:
        pass


@lru_cache(maxsize=256)
def _torch_model(config: MixerConfig, formulation: Formulation) -> TorchMixer:
    with torch.device("meta"):
        return _Uninitialised(config, formulation).eval()


def _in_torch(
    function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray, *, taps: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Compute the outputs, or the taps; return the parameters that gradients are taken of, too."""
    state = relabel(params, LINEN, TORCH, config)
    leaves = {name: torch.from_numpy(array).requires_grad_() for name, array in state.items()}
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    model = _torch_model(config, function.formulation)
    return torch.func.functional_call(model, leaves, (pixels,), {"taps": taps}, strict=True), leaves


def _torch_forward(*arguments: Any) -> np.ndarray:
    return _in_torch(*arguments)[0].detach().numpy()


def _torch_taps(*arguments: Any) -> dict[str, Any]:
    return {name: tap.detach() for name, tap in _in_torch(*arguments, taps=True)[0].items()}


def _torch_gradients(
    function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    with torch.enable_grad():
        outputs, leaves = _in_torch(function, config, params, images)
        made = torch.autograd.grad(outputs, list(leaves.values()), torch.from_numpy(cotangent))
    named = {name: gradient.numpy() for name, gradient in zip(leaves, made, strict=True)}
    return outputs.detach().numpy(), relabel(named, TORCH, LINEN, config)


# JAX


def _apply(function: ModelFunction, config: MixerConfig, *, taps: bool = False) -> Callable[[Any, Any], Any]:
    """Make the model a function of nested params and images."""
    if function.framework == "flax":
        model = FlaxMixer(config, function.formulation, function.fast)
        return lambda params, images: model.apply({"params": params}, images, taps=taps)
    make = lambda: NnxMixer(config, use_fast_variance=function.fast, rngs=nnx.Rngs(0))  # noqa: E731
    graph, state = nnx.split(nnx.eval_shape(make))

    def run(params: Any, images: Any) -> Any:
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(images, taps=taps)

    return run


@cache
def _jitted_forward(function: ModelFunction, config: MixerConfig, taps: bool) -> Any:
    return cheap_jit(_apply(function, config, taps=taps))


@cache
def _jitted_gradients(function: ModelFunction, config: MixerConfig) -> Any:
    apply = _apply(function, config)

    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        outputs = apply(params, images)
        return (outputs * cotangent).sum(), outputs

    return cheap_jit(jax.value_and_grad(scalar, has_aux=True))


def _jax_forward(function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray) -> np.ndarray:
    return np.asarray(_jitted_forward(function, config, False)(unflatten(params), images))


def _jax_taps(function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray) -> Any:
    return _jitted_forward(function, config, True)(unflatten(params), images)


def _jax_gradients(
    function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    (_, outputs), tree = _jitted_gradients(function, config)(unflatten(params), images, cotangent)
    return np.asarray(outputs), {name: np.asarray(leaf) for name, leaf in flatten(tree)}


# NumPy


def _reference(function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray) -> np.ndarray:
    outputs: np.ndarray = ReferenceMixer(config)(params, images)
    return outputs


def _reference_taps(function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray) -> Any:
    return ReferenceMixer(config)(params, images, taps=True)


def _reference_gradients(
    function: ModelFunction, config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    model = ReferenceMixer(config)
    return model(params, images), model.gradients(params, images, cotangent)


class _ComplexOperations:
    """The reference's operations on complex numbers.

    Where exp overflows for a negative argument, an activation has its limit 0.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(operations, name)

    @staticmethod
    def activate(x: np.ndarray, activation: str) -> np.ndarray:
        with np.errstate(all="ignore"):
            made = operations.activate(x, activation)
            return np.where((x.real < 0) & ~np.isfinite(made), 0.0, made)


def derivatives(
    config: MixerConfig, params: Arrays, images: np.ndarray, cotangent: np.ndarray, directions: Arrays
) -> dict[str, float]:
    """Differentiate the sum of the reference's outputs times `cotangent`, once for each parameter.

    Each derivative is along the parameter's direction, by the complex step (Squire and Trapp 1998): the imaginary part
    of f(x + ihv) is h times the derivative. No difference is taken, so no digits are lost.
    """
    model, step = ReferenceMixer(config), 1e-30
    result = {}
    for name, direction in directions.items():
        moved = {**params, name: params[name] + 1j * step * direction}
        outputs = list(model.run(_ComplexOperations(), moved, images).values())[-1]
        result[name] = float((outputs * cotangent).sum().imag) / step
    return result


_FORWARD = {"torch": _torch_forward, "flax": _jax_forward, "nnx": _jax_forward, "reference": _reference}
_TAPS = {"torch": _torch_taps, "flax": _jax_taps, "nnx": _jax_taps, "reference": _reference_taps}
_GRADIENTS = {
    "torch": _torch_gradients,
    "flax": _jax_gradients,
    "nnx": _jax_gradients,
    "reference": _reference_gradients,
}
