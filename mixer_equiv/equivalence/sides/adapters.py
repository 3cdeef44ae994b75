"""`foreign_model_of`: models of torch, Flax linen and nnx as `ForeignModel`s, run and given weights in one way."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import DTYPES, flatten, require, to_torch, unflatten
from mixer_equiv.equivalence.notice import Notice
from mixer_equiv.equivalence.record.calls import Calls, Function, Way
from mixer_equiv.equivalence.record.derivatives import Derivatives
from mixer_equiv.equivalence.record.holders import Change
from mixer_equiv.equivalence.record.state import ModelState, restoring_state
from mixer_equiv.equivalence.record.trace import Draw, Trace
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel
from mixer_equiv.equivalence.sides.inference_mode import mode_arguments, with_inference_fields
from mixer_equiv.equivalence.sides.lazy_modules import refuse_uninitialized
from mixer_equiv.equivalence.sides.run_errors import asking_for_image, errors_named
from mixer_equiv.errors import MixerEquivError, summarize


def _of_torch(module: Any, name: str, drawn: Collection[str] = (), *, is_nhwc: bool = False) -> ForeignModel:
    """Adapt a `torch.nn.Module` that takes images (batch, channels, height, width), or else those of NHWC.

    NHWC is (batch, height, width, channels). `drawn` are constant tensors of it, by name, that are taken
    for parameters.
    """
    torch = require("torch", "torch", "verifying a torch module")
    if isinstance(module, torch.jit.ScriptModule):
        raise MixerEquivError(
            f"{name} was made by torch.jit, which runs it where it cannot be followed; give the module it was made of"
        )
    from mixer_equiv.equivalence.record.torch import (
        WAYS,
        call,
        find_constant_tensors,
        find_unlisted_parameters,
        gradients,
        record,
    )
    from mixer_equiv.equivalence.record.torch.parametrizations import find_computed_weights, treat_as_parameters

    dtypes = {numpy: getattr(torch, name) for name, numpy in DTYPES.items()}
    computed = find_computed_weights(module)
    originals = {name for weight in computed.values() for name in weight.originals}
    listed = {name: parameter for name, parameter in module.named_parameters() if name not in originals}
    listed |= {name: weight.value for name, weight in computed.items()}
    own = {**listed, **{name: held for name, held in find_unlisted_parameters(module).items() if name not in originals}}
    constants, saved = find_constant_tensors(module), module.state_dict().keys()
    own |= {name: constants.pop(name) for name in drawn}
    listed |= {name: own[name] for name in drawn if name in saved}

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        with errors_named(name), treat_as_parameters(computed.values()):
            yield

    def batch_of(images: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(images if is_nhwc else images.transpose(0, 3, 1, 2)))

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with running():
            wanted, batch = dtypes[np.dtype(dtype)], batch_of(images)
            names = {"names": own, "listed": listed, "constants": constants}
            return record(module, (batch,), draw, **names, dtype=wanted, kwargs=filled, every=every)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        with torch.no_grad():
            for key, array in arrays.items():
                if key in computed:
                    computed[key].assign(to_torch(array))
                else:
                    own[key].copy_(to_torch(array).reshape(own[key].shape))

    def differentiate(images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray, dtype: Any) -> Derivatives:
        with running():
            wanted = dtypes[np.dtype(dtype)]
            return gradients(module, batch_of(images), draw, own, output, cotangent, filled, wanted)

    def call_in_turn(batches: Sequence[np.ndarray], draw: Draw, dtype: Any, **how: Any) -> Calls:
        with running():
            given = [batch_of(images) for images in batches]
            return call(module, given, draw, own, filled, dtype=dtypes[np.dtype(dtype)], **how)

    filled, notices = mode_arguments(module.forward)
    if is_nhwc:
        notices += (Notice(_CALLED_WITH_NHWC),)
    accumulating = [key for key, held in own.items() if getattr(held, "_post_accumulate_grad_hooks", None)]
    if accumulating:
        hooked = summarize(accumulating, 3)
        notices += (Notice(f"hooks behind the accumulation of gradients are not run: those on {hooked}"),)
    notices += (*_loading_hooks(module), *_frozen(module))
    if computed:
        notices += (Notice(f"computed from other parameters, and taken for parameters here: {', '.join(computed)}"),)
    return ForeignModel(
        name,
        "torch",
        run,
        own,
        put,
        differentiate,
        call_in_turn,
        notices,
        computed=tuple(computed),
        constants=constants,
        saved=frozenset(constants.keys() & saved),
        drawing=partial(_of_torch, module, name, is_nhwc=is_nhwc),
        as_nhwc=None if is_nhwc else partial(_of_torch, module, name, is_nhwc=True),
        ways=tuple(name for name in WAYS if name),
        rewrites=True,
    )


_CALLED_WITH_NHWC = (
    "it raises on images (batch, channels, height, width), as torch has them, and was called with "
    "(batch, height, width, channels)"
)


def _loading_hooks(module: Any) -> Iterator[Notice]:
    """A notice of code by which a state_dict that is loaded or saved may hold other weights than the module."""
    kinds = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
    hooked = [
        name or "the model"
        for name, part in module.named_modules()
        if any(getattr(part, kind, ()) for kind in kinds) or _loads_by_own_code(part)
    ]
    if hooked:
        yield Notice(f"hooks on loading or saving a state_dict are not run: those of {summarize(hooked, 3)}")


def _loads_by_own_code(module: Any) -> bool:
    """Whether somebody else than torch wrote how this module loads or saves a state_dict."""
    methods = ("load_state_dict", "_load_from_state_dict", "state_dict", "_save_to_state_dict")
    return any(_module_of(getattr(module, method)) != "torch" for method in methods)


def _module_of(function: Any) -> str:
    """The top package in which a function or method was written."""
    return str(getattr(function, "__module__", "")).partition(".")[0]


def _frozen(module: Any) -> Iterator[Notice]:
    """A notice of parameters that training leaves as they are, where others ask for gradients."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    if 0 < len(frozen) < len(list(module.parameters())):
        yield Notice(f"parameters that ask for no gradient, so that training leaves them: {summarize(frozen, 3)}")


def _of_linen(module: Any, name: str, image: tuple[int, int, int], drawn: Collection[str] = ()) -> ForeignModel:
    """Adapt a `flax.linen.Module` that takes images (batch, height, width, channels).

    `drawn` are arrays of its other collections, such as "constants/mask", that are taken for parameters.
    """
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
    with errors_named(name):
        given = jax.ShapeDtypeStruct((1, height, width, channels), np.float32)
        boxed = jax.eval_shape(partial(module.init, **filled), jax.random.key(0), given)
        made = meta.unbox(boxed)  # from annotations of how arrays are sharded
    others: dict[str, Any] = {}
    if made.keys() - {"params"}:  # such as running statistics
        with errors_named(name):
            begun = meta.unbox(module.init(jax.random.key(0), np.zeros(given.shape, np.float32), **filled))
        others = {key: jax.tree.map(np.asarray, values) for key, values in begun.items() if key != "params"}
    shapes = {key: tuple(leaf.shape) for key, leaf in flatten(made.get("params", {}))}
    constants = {key: leaf for key, leaf in flatten(others) if leaf.dtype.kind == "f"}
    left = [key for key, _ in flatten(others) if key not in drawn]
    if left:
        notices += (Notice(f"arrays of other collections are left as init makes them: {summarize(left, 3)}"),)
    shapes |= {key: constants[key].shape for key in drawn}
    own |= {key: constants[key] for key in drawn if own}

    def apply(params: Mapping[str, Any], batch: Any, kept: Any) -> tuple[Any, None]:
        inner = {f"params/{key}": value for key, value in params.items() if key not in drawn}
        variables = {**dict(flatten(others)), **inner, **{key: params[key] for key in drawn}}
        return module.apply(unflatten(variables), batch, **filled), None

    model = _of_jax(name, module, lambda training, seed: apply, shapes, own, notices)
    return dataclasses.replace(
        model,
        has_modes=False,
        constants={key: leaf for key, leaf in constants.items() if key not in drawn},
        drawing=partial(_of_linen, module, name, image),
        labels_constants=False,
    )


def _of_jax(
    name: str,
    module: Any,
    applied: Callable[[bool, int], Function],
    shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, Any],
    notices: tuple[Notice, ...],
    changes: list[Change] | None = None,
) -> ForeignModel:
    """Adapt a function of parameters by name and images; `applied` makes it for a mode and a seed of its keys.

    What its calls change in `module`, and in what that refers to, is put back. To `changes` each call adds what it
    changes elsewhere.
    """
    from mixer_equiv.equivalence.record.jax import EAGERLY, call, gradients, record

    objects = [("", module)]

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        with errors_named(name), restoring_state(objects):
            yield

    def run(images: np.ndarray, draw: Draw, dtype: Any, every: bool) -> Trace:
        with running():
            return record(applied(False, 0), shapes, images, draw, dtype, every=every)

    def differentiate(images: np.ndarray, draw: Draw, output: str, cotangent: np.ndarray, dtype: Any) -> Derivatives:
        with running():
            return gradients(applied(False, 0), shapes, images, draw, output, cotangent, dtype)

    def call_in_turn(
        batches: Sequence[np.ndarray], draw: Draw, dtype: Any, *, training: bool, seed: int, skipped: int, way: Way
    ) -> Calls:
        with running(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX warns of statistics in float32 beside float64
            function = applied(training, seed)
            how = {"seed": seed, "skipped": skipped, "changes": changes, "dtype": dtype, "way": way}
            return call(function, shapes, batches, draw, objects, **how)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        """Do nothing: a module of linen holds no weights."""

    return ForeignModel(name, "flax", run, own, put, differentiate, call_in_turn, notices, ways=(EAGERLY,))


def _of_nnx(module: Any, name: str, drawn: Collection[str] = ()) -> ForeignModel:
    """Adapt a `flax.nnx.Module` that takes images (batch, height, width, channels).

    `drawn` are variables of it, by name, that are no `nnx.Param` and are taken for parameters.
    """
    jax = require("jax", "flax", "verifying an nnx module")
    nnx = require("flax.nnx", "flax", "verifying an nnx module")
    from mixer_equiv.equivalence.record.module_scopes import naming_calls

    taken = nnx.Param, lambda path, _: "/".join(map(str, path)) in drawn
    graph, params, rest = nnx.split(module, taken, ...)
    constants = {
        key: leaf
        for key, leaf in flatten(nnx.to_pure_dict(rest))
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    }
    own = dict(flatten(nnx.to_pure_dict(params)))
    shapes = {key: tuple(leaf.shape) for key, leaf in own.items()}

    def applied(training: bool, seed: int) -> Function:
        last: list[Any] = []  # the module of the last call, of which the attributes are of use, and not the arrays

        def apply(given: Mapping[str, Any], batch: Any, kept: Any) -> tuple[Any, Any]:
            """Call the module as the last call left it, with its attributes and variables."""
            if kept is None:
                state = params.copy() if hasattr(params, "copy") else params
                nnx.replace_by_pure_dict(state, _as_pure(given))
                made = nnx.merge(graph, state, jax.tree.map(partial(_reseeded, seed=seed), rest))
                (made.train if training else made.eval)()
            else:
                made = nnx.merge(nnx.split(last[0])[0], kept)
            last[:] = [made]
            before = ModelState([("", made)])
            with naming_calls({"/".join(map(str, path)): part for path, part in nnx.iter_modules(made)}):
                result = made(batch, **filled)
            changes.extend(before.changes())
            return result, nnx.split(made)[1]

        return apply

    def _as_pure(given: Mapping[str, Any]) -> Any:
        return jax_tree(nnx.to_pure_dict(params), given)

    def put(arrays: Mapping[str, np.ndarray]) -> None:
        state = nnx.state(module, taken)
        given = {
            key: np.asarray(arrays[key]).astype(leaf.dtype) if key in arrays else leaf for key, leaf in own.items()
        }
        nnx.replace_by_pure_dict(state, _as_pure(given))
        nnx.update(module, state)

    filled, notices = mode_arguments(module.__call__)
    if constants:
        notices += (Notice(f"variables other than parameters are left as they are: {summarize(constants, 3)}"),)
    changes: list[Change] = []
    model = _of_jax(name, module, applied, shapes, own, notices, changes)
    return dataclasses.replace(
        model, put=put, constants=constants, drawing=partial(_of_nnx, module, name), labels_constants=False
    )


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
        refuse_uninitialized(model, name, image)
        return _of_torch(model, name)
    if _is_a(model, "flax.linen", "Module"):
        with asking_for_image(image):
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
