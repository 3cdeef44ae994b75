"""Outputs and gradients of a whole stack of draws, in its dtype: of Flax and of torch, each in several ways."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
import torch
from torch.func import functional_call, grad, vmap

from benchmarks.stacks import Arrays, Stack, relabelled
from mixer_equiv import Formulation
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.equivalence.record.precision import jax_full_precision, torch_full_precision, torch_threads
from mixer_equiv.formulation import DEFAULT_FORMULATION
from mixer_equiv.layouts import LINEN, TORCH
from mixer_equiv.models.flax import MlpMixer as FlaxMixer
from mixer_equiv.models.torch import MlpMixer as TorchMixer

# Options of XLA that make compiling cheap and running slow, right for what runs 64 times.
CHEAP: Mapping[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
LINEAR_STEM = Formulation(patch="linear")


def cheap_jit(function: Any) -> Any:
    """jax.jit with little optimisation: a test's model is compiled once and run once, or on a few small arrays."""
    return jax.jit(function, compiler_options=_cheap_options())


@cache
def _cheap_options() -> dict[str, Any]:
    """Those of `CHEAP` that the installed XLA knows, which make 0.3 s of 1.9 for the gradients of two blocks."""
    known: dict[str, Any] = {}
    for name, value in CHEAP.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options={**known, name: value})
            known[name] = value
    return known


@dataclasses.dataclass(frozen=True)
class Results:
    """`outputs` (draws, batch, classes), and canonical gradients with the draws as their first axis."""

    outputs: np.ndarray
    gradients: Arrays

    def of_dtype(self, dtype: np.dtype) -> Results:
        """Itself. Raises `AssertionError` where anything was computed in another precision."""
        dtypes = {array.dtype for array in (self.outputs, *self.gradients.values())}
        assert dtypes == {dtype}, f"computed in {dtypes} where {dtype} was asked for"
        return self

    def with_draw(self, draw: int, other: Results) -> Results:
        """A copy whose results of this draw are the only ones of `other`."""
        outputs, gradients = self.outputs.copy(), {name: array.copy() for name, array in self.gradients.items()}
        outputs[draw] = other.outputs[0]
        for name, array in gradients.items():
            array[draw] = other.gradients[name][0]
        return Results(outputs, gradients)


@dataclasses.dataclass(frozen=True)
class Ways:
    """How a stack is run; all of them compute the same.

    `flax` is "loop" (compiled once, called for each draw), "vmap", "map" (`lax.map`) or "eager";
    `torch` "vmap" or "loop", on so many `threads`. The formulations are those of the models.
    """

    flax: str = "loop"
    torch: str = "vmap"
    threads: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=lambda: CHEAP)
    flax_formulation: Formulation = DEFAULT_FORMULATION
    torch_formulation: Formulation = DEFAULT_FORMULATION


def run_flax(stack: Stack, ways: Ways) -> Results:
    """The Flax model on every draw, compiled anew at every call of this function."""
    model = FlaxMixer(stack.config, ways.flax_formulation)

    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        outputs: Any = model.apply({"params": params}, images)
        return (outputs * cotangent).sum(), outputs

    with jax_full_precision():
        run = _FLAX[ways.flax](jax.grad(scalar, has_aux=True), ways.options)
        gradients, outputs = run((unflatten(stack.params), stack.images, stack.cotangents))
        result = Results(np.asarray(outputs), {name: np.asarray(leaf) for name, leaf in flatten(gradients)})
    return result.of_dtype(stack.images.dtype)


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


def run_torch(stack: Stack, state: Arrays, ways: Ways) -> Results:
    """The torch model on every draw, with the weights `state`, by torch's names."""
    with torch.device("meta"):
        model = TorchMixer(stack.config, ways.torch_formulation).eval()

    def scalar(params: Any, images: Any, cotangent: Any) -> Any:
        outputs = functional_call(model, params, images, strict=True)
        return (outputs * cotangent).sum(), outputs

    # The copies are torch's to write to; the draws stay as they are.
    arguments = (
        {name: torch.tensor(array) for name, array in state.items()},
        torch.tensor(stack.images.transpose(0, 1, 4, 2, 3)),
        torch.tensor(stack.cotangents),
    )
    with torch_threads(ways.threads), torch_full_precision(), torch.enable_grad():
        gradients, outputs = _TORCH[ways.torch](grad(scalar, has_aux=True), arguments)
    by_torch = {name: gradient.numpy() for name, gradient in gradients.items()}
    result = Results(outputs.detach().numpy(), relabelled(by_torch, TORCH, LINEN, stack.config))
    return result.of_dtype(stack.images.dtype)


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
