"""Outputs and gradients of a whole stack of draws, in Flax and in torch, each in several options.

The stack's dtype is that of all computing. Start reading at `run_stack_in_flax` and `run_stack_in_torch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from benchmarks.stacks import Arrays, Stack, relabel_stack
from benchmarks.xla_options import CHEAP_OPTIONS
from mixer_equiv import Formulation
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.equivalence.record.precision import jax_full_precision, torch_full_precision, torch_threads
from mixer_equiv.formulation import DEFAULT_FORMULATION
from mixer_equiv.layouts import LINEN, TORCH
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer

LINEAR_STEM = Formulation(patch="linear")


@dataclasses.dataclass(frozen=True)
class StackResults:
    """Outputs (draws, batch, classes), and canonical gradients with the draws as their first axis."""

    outputs: np.ndarray
    gradients: Arrays

    def check_dtype(self, dtype: np.dtype) -> StackResults:
        """Return the same results. Raises `AssertionError` where anything was computed in another precision."""
        dtypes = {array.dtype for array in (self.outputs, *self.gradients.values())}
        assert dtypes == {dtype}, f"computed in {dtypes} where {dtype} was asked for"
        return self

    def with_draw(self, draw: int, other: StackResults) -> StackResults:
        """Copy the results, with those of this draw taken from `other`, which has one draw."""
        outputs, gradients = self.outputs.copy(), {name: array.copy() for name, array in self.gradients.items()}
        outputs[draw] = other.outputs[0]
        for name, array in gradients.items():
            array[draw] = other.gradients[name][0]
        return StackResults(outputs, gradients)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Ways to run a stack; all of them compute the same.

    `flax` is "loop" (compiled once, called for each draw), "vmap", "map" (`lax.map`) or "eager"; `torch` is "vmap" or
    "loop", on `threads` threads. The formulations are those of the models.
    """

    flax: str = "loop"
    torch: str = "vmap"
    threads: int = 1
    xla_options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: CHEAP_OPTIONS)
    flax_formulation: Formulation = DEFAULT_FORMULATION
    torch_formulation: Formulation = DEFAULT_FORMULATION


def run_stack_in_flax(stack: Stack, options: RunOptions) -> StackResults:
    """Run the Flax model on every draw; every call of this function compiles it anew."""
    model = FlaxMixer(stack.config, options.flax_formulation)

    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        outputs: Any = model.apply({"params": params}, images)
        return (outputs * cotangent).sum(), outputs

    with jax_full_precision():
        run = _FLAX[options.flax](jax.grad(scalar, has_aux=True), options.xla_options)
        gradients, outputs = run((unflatten(stack.params), stack.images, stack.cotangents))
        result = StackResults(np.asarray(outputs), {name: np.asarray(leaf) for name, leaf in flatten(gradients)})
    return result.check_dtype(stack.images.dtype)


def _one_by_one(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def run(arguments: Any) -> Any:
        count = len(arguments[1])
        results = [function(*jax.tree.map(lambda array, i=i: array[i], arguments)) for i in range(count)]
        return jax.tree.map(lambda *parts: np.stack(parts), *results)

    return run


_FLAX: dict[str, Callable[[Callable[..., Any], Mapping[str, Any]], Callable[[Any], Any]]] = {
    "loop": lambda function, options: _one_by_one(jax.jit(function, compiler_options=dict(options))),
    "eager": lambda function, options: _one_by_one(function),
    "vmap": lambda function, options: (
        lambda arguments: jax.jit(jax.vmap(function), compiler_options=dict(options))(*arguments)
    ),
    "map": lambda function, options: jax.jit(
        lambda arguments: jax.lax.map(lambda each: function(*each), arguments), compiler_options=dict(options)
    ),
}


def run_stack_in_torch(stack: Stack, state: Arrays, options: RunOptions) -> StackResults:
    """Run the torch model on every draw, with the weights `state`, by torch's names."""
    with torch.device("meta"):
        model = TorchMixer(stack.config, options.torch_formulation).eval()

    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        outputs = functional_call(model, params, images, strict=True)
        return (outputs * cotangent).sum(), outputs

    # torch gets copies, which it may write to; the draws stay as they are.
    arguments = (
        {name: torch.tensor(array) for name, array in state.items()},
        torch.tensor(stack.images.transpose(0, 1, 4, 2, 3)),
        torch.tensor(stack.cotangents),
    )
    with torch_threads(options.threads), torch_full_precision(), torch.enable_grad():
        gradients, outputs = _TORCH[options.torch](grad(scalar, has_aux=True), arguments)
    by_torch = {name: gradient.numpy() for name, gradient in gradients.items()}
    result = StackResults(outputs.detach().numpy(), relabel_stack(by_torch, TORCH, LINEN, stack.config))
    return result.check_dtype(stack.images.dtype)


def _loop(function: Callable[..., Any], arguments: Any) -> Any:
    state, images, cotangents = arguments
    parts = [
        function({name: tensor[i] for name, tensor in state.items()}, images[i], cotangents[i])
        for i in range(len(images))
    ]
    gradients = {name: torch.stack([part[0][name] for part in parts]) for name in state}
    return gradients, torch.stack([part[1] for part in parts])


_TORCH: dict[str, Callable[[Callable[..., Any], Any], Any]] = {
    "loop": _loop,
    "vmap": lambda function, arguments: vmap(function)(*arguments),
}
