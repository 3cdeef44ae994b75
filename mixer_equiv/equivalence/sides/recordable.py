"""`recordable`: any model of torch, Flax linen or nnx, whose pass on any inputs is recorded as a graph.

Models that are compared with Mixers are adapted in `adapters`. Start at `recordable`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import flatten, require, unflatten
from mixer_equiv.equivalence.record.graph import Graph, split_arguments
from mixer_equiv.equivalence.record.trace import Draw
from mixer_equiv.equivalence.sides.adapters import is_model, jax_tree
from mixer_equiv.equivalence.sides.inference_mode import mode_arguments, with_inference_fields
from mixer_equiv.equivalence.sides.run_errors import errors_named
from mixer_equiv.errors import MixerEquivError


@dataclasses.dataclass(frozen=True, eq=False)
class Recordable:
    """A model that is recorded.

    Attributes:
        name: The name of its class.
        framework: "torch" or "flax".
        shapes: The shapes of its parameters by name; statistics of a BatchNorm and the like are among them.
        record: Gives the graph of a pass in float64, with the parameters drawn.
    """

    name: str
    framework: str
    shapes: Mapping[str, tuple[int, ...]]
    record: Callable[[Draw], Graph]


def as_inputs(given: Any) -> dict[str, Any]:
    """Arguments by name: an array or a dict of arguments as they are, positional ones in a tuple by their number."""
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    return {str(i): value for i, value in enumerate(given if isinstance(given, tuple) else (given,))}


def recordable(model: Any, inputs: Mapping[str, Any]) -> Recordable:
    """A model that is called on such inputs, as `as_inputs` gives them, in its mode of inference.

    Raises `MixerEquivError` for what is no model of torch, linen or nnx.
    """
    if not is_model(model):
        raise MixerEquivError(f"found a {type(model).__name__}; give a model of torch, Flax linen or nnx")
    framework = type(model).__mro__
    modules = {kind.__module__.partition(".")[0] for kind in framework}
    if "torch" in modules:
        return _of_torch(model, inputs)
    return _of_linen(model, inputs) if hasattr(model, "apply") else _of_nnx(model, inputs)


def _of_torch(module: Any, inputs: Mapping[str, Any]) -> Recordable:
    torch = require("torch", "torch", "recording a torch module")
    from mixer_equiv.equivalence.record.torch.run import record_graph

    name = type(module).__name__
    saved = module.state_dict(keep_vars=True)
    buffers = {key: held for key, held in module.named_buffers() if key in saved}
    own = {key: held for key, held in [*module.named_parameters(), *buffers.items()] if held.is_floating_point()}
    filled, _ = mode_arguments(module.forward)
    given = {key: _mapped(value, torch.as_tensor) for key, value in inputs.items()} | filled

    def record(draw: Draw) -> Graph:
        with errors_named(name):
            return record_graph(module, given, draw, names=own)

    return Recordable(name, "torch", {key: tuple(held.shape) for key, held in own.items()}, record)


def _of_linen(module: Any, inputs: Mapping[str, Any]) -> Recordable:
    jax = require("jax", "flax", "recording a Flax module")
    meta = require("flax.core.meta", "flax", "recording a Flax module")
    name = type(module).__name__
    if module.scope is not None:
        module, _ = module.unbind()
    module, _ = with_inference_fields(module)
    filled, _ = mode_arguments(module.__call__)
    given = {key: _mapped(value, _as_numpy) for key, value in inputs.items()}
    with errors_named(name):
        args, kwargs = split_arguments(given)
        boxed = jax.eval_shape(partial(module.init, **filled), jax.random.key(0), *args, **kwargs)
        made = dict(flatten(meta.unbox(boxed)))
    shapes = {_bare(key): tuple(leaf.shape) for key, leaf in made.items() if np.issubdtype(leaf.dtype, np.floating)}

    def call(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        args, kwargs = split_arguments(arguments)
        variables = {key: parameters[_bare(key)] for key in made if _bare(key) in shapes}
        return module.apply(unflatten(variables), *args, **kwargs, **filled)

    return Recordable(name, "flax", shapes, partial(_record_jax, name, call, shapes, given))


def _bare(name: str) -> str:
    """A variable's name, without the collection of parameters."""
    return name.removeprefix("params/")


def _of_nnx(module: Any, inputs: Mapping[str, Any]) -> Recordable:
    jax = require("jax", "flax", "recording an nnx module")
    nnx = require("flax.nnx", "flax", "recording an nnx module")
    name = type(module).__name__
    filled, _ = mode_arguments(module.__call__)
    given = {key: _mapped(value, _as_numpy) for key, value in inputs.items()}
    graph, drawn, rest = nnx.split(module, (nnx.Param, nnx.BatchStat), ...)
    like = nnx.to_pure_dict(drawn)
    shapes = {
        key: tuple(leaf.shape) for key, leaf in flatten(like) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    }

    def call(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        state = nnx.state(module, (nnx.Param, nnx.BatchStat))
        nnx.replace_by_pure_dict(state, jax_tree(like, parameters))
        made = nnx.merge(graph, state, rest)
        made.eval()
        args, kwargs = split_arguments(arguments)
        return made(*args, **kwargs, **filled)

    return Recordable(name, "flax", shapes, partial(_record_jax, name, call, shapes, given))


def _record_jax(
    name: str, call: Callable[..., Any], shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any], draw: Draw
) -> Graph:
    from mixer_equiv.equivalence.record.jax_graph import record_graph

    with errors_named(name):
        return record_graph(call, shapes, given, draw)


def _mapped(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Nested containers with every array converted; numbers, strings and None stay."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, convert) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, convert) for item in value)
    return convert(value) if hasattr(value, "shape") else value


def _as_numpy(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
