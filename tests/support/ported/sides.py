"""Make a `Side` of a torch module, a linen module, or a function that makes an nnx module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import torch
from flax import linen, nnx
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks.xla_options import cheap_jit
from mixer_equiv.arrays.interop import flatten, unflatten
from mixer_equiv.equivalence.record.graph import split_arguments
from mixer_equiv.equivalence.record.precision import jax_full_precision, torch_full_precision
from mixer_equiv.equivalence.record.torch.nested_tensors import result_tensors
from tests.support.ported.pair import Arrays, Input, Side, in_channels_last


def torch_side(module: nn.Module, *outputs: str) -> Side:
    """A side of a torch module. Its parameters are all floats of its state_dict, tied ones once."""
    module.eval()
    held = module.state_dict()
    named = [*module.named_parameters(), *module.named_buffers()]
    shapes = {n: tuple(tensor.shape) for n, tensor in named if n in held and tensor.is_floating_point()}
    paths = outputs or ("",)

    def run(parameters: Arrays, inputs: Arrays) -> list[np.ndarray]:
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        positional, keywords = split_arguments(given)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in parameters.items()}
        with torch_full_precision(), _InFloat64():
            made = dict(
                result_tensors(torch.func.functional_call(module, tensors, tuple(positional), keywords, strict=False))
            )
        return [made[path].numpy() for path in paths]

    return Side(module, shapes, run, paths)


class _InFloat64(TorchFunctionMode):
    """Calls inside ask for float64 where they would for float32: some models normalise in float32 by themselves."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(_widen, args), **{name: _widen(value) for name, value in (kwargs or {}).items()})


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def linen_side(module: linen.Module, inputs: Mapping[str, Input], *outputs: str) -> Side:
    """A side of a linen module. Arrays of other collections than "params" have the collection's name first."""
    arguments = in_channels_last({name: np.zeros(given.shape, given.dtype) for name, given in inputs.items()})
    made = jax.eval_shape(lambda given: _call(partial(module.init, jax.random.key(0)), given), arguments)
    shapes = {name.removeprefix("params/"): tuple(leaf.shape) for name, leaf in flatten(made)}

    def call(parameters: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        named = {n if n.startswith("batch_stats/") else f"params/{n}": array for n, array in parameters.items()}
        return _call(partial(module.apply, unflatten(named)), inputs)

    return _jax_side(module, shapes, call, outputs)


def nnx_side(make: Callable[[], nnx.Module], *outputs: str) -> Side:
    """A side of what `make` returns, of which the parameters are its `nnx.Param`s, and else nothing is a variable."""
    graph, state = nnx.split(nnx.eval_shape(make))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    shapes = {"/".join(str(key.key) for key in path): tuple(leaf.shape) for path, leaf in leaves}
    structure = jax.tree.structure(state)

    def call(parameters: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
        filled = jax.tree.unflatten(structure, [parameters[name] for name in shapes])
        return _call(nnx.merge(graph, filled), inputs)

    return _jax_side(make, shapes, call, outputs)


def _jax_side(model: Any, shapes: Any, call: Callable[..., Any], outputs: tuple[str, ...]) -> Side:
    paths = outputs or ("",)
    compiled = cache(lambda: cheap_jit(call))

    def run(parameters: Arrays, inputs: Arrays) -> list[np.ndarray]:
        with jax_full_precision():
            result = compiled()(dict(parameters), dict(inputs))
            made = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(result)}
            return [np.asarray(made[path]) for path in paths]

    return Side(model, shapes, run, paths, call, channels_last=True)


def _call(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Call with the inputs named by a number in their order, and the others as keywords."""
    positional, keywords = split_arguments(inputs)
    return function(*positional, **keywords)
