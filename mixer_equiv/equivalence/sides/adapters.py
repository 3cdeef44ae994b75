"""`foreign_model_of`: models of torch, Flax linen and nnx as `ForeignModel`s, run and given weights in one way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import DTYPES, flatten, require, to_torch, unflatten
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel
from mixer_equiv.equivalence.sides.inference_mode import mode_arguments, with_inference_fields
from mixer_equiv.errors import MixerEquivError


def _of_torch(module: Any, name: str) -> ForeignModel:
    """Adapt a `torch.nn.Module` that takes images (batch, channels, height, width)."""
    torch = require("torch", "torch", "verifying a torch module")
    if isinstance(module, torch.jit.ScriptModule):
        raise MixerEquivError(
            f"{name} was made by torch.jit, which runs it where it cannot be followed; give the module it was made of"
        )
    from mixer_equiv.equivalence.record.torch import find_unlisted_parameters, gradients, outputs, record
    from mixer_equiv.equivalence.record.torch.parametrizations import find_computed_weights, treat_as_parameters

    dtypes = {numpy: getattr(torch, name) for name, numpy in DTYPES.items()}
    computed = find_computed_weights(module)
    originals = {name for weight in computed.values() for name in weight.originals}
    listed = {name: parameter for name, parameter in module.named_parameters() if name not in originals}
    listed |= {name: weight.value for name, weight in computed.items()}
    own = {**listed, **{name: held for name, held in find_unlisted_parameters(module).items() if name not in originals}}

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        with _errors_named(name), treat_as_parameters(computed.values()):
            yield

    def batch_of(images: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with running():
            wanted, batch = dtypes[np.dtype(dtype)], batch_of(images)
            return record(module, (batch,), draw, names=own, listed=listed, dtype=wanted, kwargs=filled, every=every)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for key, array in arrays.items():
                if key in computed:
                    computed[key].assign(to_torch(array))
                else:
                    own[key].copy_(to_torch(array).reshape(own[key].shape))

    def differentiate(
        images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray, dtype: Any
    ) -> dict[str, np.ndarray]:
        with running():
            wanted = dtypes[np.dtype(dtype)]
            return gradients(module, batch_of(images), draw, own, output, cotangent, filled, wanted)

    def rerun(images: np.ndarray, draw: Draw, training: bool, seed: int) -> dict[str, np.ndarray]:
        with running():
            return outputs(module, batch_of(images), draw, own, filled, training=training, seed=seed)

    filled, notices = mode_arguments(module.forward)
    if computed:
        notices += (Notice(f"computed from other parameters, and taken for parameters here: {', '.join(computed)}"),)
    return ForeignModel(name, "torch", run, own, put, differentiate, rerun, notices, computed=tuple(computed))


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Turn what a model raises into one message of ours."""
    try:
        yield
    except MixerEquivError:
        raise
    except (Exception, SystemExit) as error:
        what = " ".join(str(error).split())
        if "functorch transform" in what:
            what = f"torch.vmap and torch.func inside a model cannot be followed ({what})"
        where = "" if what else f"nothing said, at {_last_line(error)}"
        raise MixerEquivError(f"{name} raised {type(error).__name__} when it was run: {what or where}") from error


def _last_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}:{frame.lineno}, {frame.line}"


def _of_linen(module: Any, name: str, image: tuple[int, int, int]) -> ForeignModel:
    """Adapt a `flax.linen.Module` that takes images (batch, height, width, channels)."""
    jax = require("jax", "flax", "verifying a Flax module")
    meta = require("flax.core.meta", "flax", "verifying a Flax module")
    channels, height, width = image
    own: dict[str, Any] = {}
    if module.scope is not None:  # bound to variables, which are its own weights
        module, bound = module.unbind()
        own = dict(flatten(meta.unbox(bound.get("params", {}))))
    module, made_anew = with_inference_fields(module)
    filled, notices = mode_arguments(module.__call__)
    notices = (*made_anew, *notices)
    with _errors_named(name):
        given = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
        boxed = jax.eval_shape(partial(module.init, **filled), jax.random.key(0), given)
        made = meta.unbox(boxed)  # from annotations of how arrays are sharded
    others: dict[str, Any] = {}
    if made.keys() - {"params"}:  # such as running statistics, which stay as init makes them
        with _errors_named(name):
            begun = meta.unbox(module.init(jax.random.key(0), np.zeros(given.shape, np.float32), **filled))
        others = {key: jax.tree.map(np.asarray, values) for key, values in begun.items() if key != "params"}
        notices += (Notice(f"the collections {', '.join(others)} are left as init makes them"),)
    shapes = {key: tuple(leaf.shape) for key, leaf in flatten(made.get("params", {}))}

    def apply(params: Mapping[str, Any], batch: Any) -> Any:
        return module.apply({**others, "params": unflatten(params)}, batch, **filled)

    model = _of_jax(name, lambda training, seed: apply, shapes, own, notices)
    return dataclasses.replace(model, has_modes=False)


def _of_jax(
    name: str,
    applied: Callable[[bool, int], Callable[[Mapping[str, Any], Any], Any]],
    shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, Any],
    notices: tuple[Notice, ...],
) -> ForeignModel:
    """Adapt a function of parameters by name and images; `applied` makes it for a mode and a seed of its keys."""
    from mixer_equiv.equivalence.record.jax import gradients, record

    function = applied(False, 0)

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with _errors_named(name):
            return record(function, shapes, images, draw, dtype, every=every)

    def differentiate(
        images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray, dtype: Any
    ) -> Mapping[str, np.ndarray]:
        with _errors_named(name):
            return gradients(function, shapes, images, draw, output, cotangent, dtype)

    def rerun(images: np.ndarray, draw: Draw, training: bool, seed: int) -> dict[str, np.ndarray]:
        with _errors_named(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of statistics in float32 beside float64
            trace = record(applied(training, seed), shapes, images, draw, every=False, seed=seed)
        return {path: trace.values[number].array for path, number in trace.outputs.items()}

    return ForeignModel(name, "flax", run, own, lambda arrays: None, differentiate, rerun, notices)


def _of_nnx(module: Any, name: str) -> ForeignModel:
    """Adapt a `flax.nnx.Module` that takes images (batch, height, width, channels)."""
    jax = require("jax", "flax", "verifying an nnx module")
    nnx = require("flax.nnx", "flax", "verifying an nnx module")
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    own = dict(flatten(nnx.to_pure_dict(params)))
    shapes = {key: tuple(leaf.shape) for key, leaf in own.items()}

    def apply(given: Mapping[str, Any], batch: Any, *, training: bool, seed: int) -> Any:
        state = params.copy() if hasattr(params, "copy") else params
        nnx.replace_by_pure_dict(state, _as_pure(given))
        made = nnx.merge(graph, state, jax.tree.map(partial(_reseeded, seed=seed), rest))
        (made.train if training else made.eval)()
        return made(batch, **filled)

    def _as_pure(given: Mapping[str, Any]) -> Any:
        return jax_tree(nnx.to_pure_dict(params), given)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        state = nnx.state(module, nnx.Param)
        given = {
            key: np.asarray(arrays[key]).astype(leaf.dtype) if key in arrays else leaf for key, leaf in own.items()
        }
        nnx.replace_by_pure_dict(state, _as_pure(given))
        nnx.update(module, state)

    filled, notices = mode_arguments(module.__call__)
    model = _of_jax(name, lambda training, seed: partial(apply, training=training, seed=seed), shapes, own, notices)
    return dataclasses.replace(model, put=put)


def _reseeded(leaf: Any, seed: int) -> Any:
    """Replace a random key of JAX by another one; seed 0 keeps it, and so is every other leaf kept."""
    import jax

    if not (seed and hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)):
        return leaf
    keys = jax.vmap(lambda key: jax.random.fold_in(key, seed))(leaf.reshape(-1))  # of stacked blocks, several
    return keys.reshape(leaf.shape)


def jax_tree(like: Any, given: Mapping[str, Any], prefix: str = "") -> Any:
    """Nested dicts like `like`, whose keys need not be strings, with the leaves of `given`."""
    return {
        key: jax_tree(value, given, f"{prefix}{key}/") if isinstance(value, Mapping) else given[f"{prefix}{key}"]
        for key, value in like.items()
    }


def foreign_model_of(model: Any, image: tuple[int, int, int]) -> ForeignModel:
    """Adapt a model of torch, Flax linen or nnx, for images of (channels, height, width).

    Raises `MixerEquivError` for anything else.
    """
    name = type(model).__name__
    if isinstance(model, type):
        raise MixerEquivError(f"found the class {model.__name__}; give a model of it, such as {model.__name__}(...)")
    if _is_a(model, "torch.nn", "Module"):
        return _of_torch(model, name)
    if _is_a(model, "flax.linen", "Module"):
        return _of_linen(model, name, image)
    if _is_a(model, "flax.nnx", "Module"):
        return _of_nnx(model, name)
    raise MixerEquivError(f"found a {type(model).__module__}.{name}; {VERIFIED}")


VERIFIED = (
    "verify takes a checkpoint, the path of one, arrays by name, a model of torch, Flax linen or nnx, a class or "
    "function that makes one (of other objects the method, such as factory.__call__), one of ours (flax, nnx, torch, "
    "reference; with a variant: 'flax:B/16'), or the place of a model: path/to/file.py:Name, "
    "package.module:Name, timm:NAME"
)


def is_model(value: Any) -> bool:
    """Whether `value` is a model of torch, Flax linen or nnx; no framework is imported to find out."""
    return any(_is_a(value, module, "Module") for module in _MODULES)


def is_model_class(value: type) -> bool:
    """Whether instances of `value` are such models."""
    return any(issubclass(value, sys.modules[module].Module) for module in _MODULES if module in sys.modules)


_MODULES = ("torch.nn", "flax.linen", "flax.nnx")


def _is_a(value: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))
