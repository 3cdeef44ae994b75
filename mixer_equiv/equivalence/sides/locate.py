"""`model_at`: make a model with a class or a function, or take it from a place.

Places are "package.module:Name", "path/to/file.py:Name" and "timm:NAME".
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.config import MixerConfig
from mixer_equiv.equivalence.sides.adapters import is_model
from mixer_equiv.equivalence.sides.inference_mode import INFERENCE_MODE
from mixer_equiv.equivalence.sides.models_in_file import no_such_name, what_to_type
from mixer_equiv.errors import ConfigError, MissingDependencyError, MixerEquivError, did_you_mean


def is_source(text: str) -> bool:
    """Whether `text` looks like the place of a model. A file of Python is one that lacks a name."""
    place, colon, name = text.rpartition(":")
    is_named = bool(colon and name.isidentifier() and (place.endswith(".py") or _is_module(place)))
    return is_named or is_timm(text) or text.endswith(".py")


def is_maker(value: Any) -> bool:
    """Whether `value` is a class, or a function that may make a model."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)


def is_timm(text: str) -> bool:
    return text.startswith("timm:")


def _is_module(place: str) -> bool:
    return bool(place) and all(part.isidentifier() for part in place.split("."))


@dataclasses.dataclass(frozen=True)
class Located:
    """A model, and whether it was made here, so that nobody else has it."""

    model: Any
    is_new: bool


def model_at(source: Any, kwargs: Mapping[str, Any], config: MixerConfig | None = None) -> Located:
    """Make a model with a class or function, of `config` if there is one and `kwargs`, or take it from a place.

    Raises `MixerEquivError` where there is none at a place, it cannot be made with these arguments, or a class
    needs some and has none; what a class or function with arguments itself raises is left to it.
    """
    located = _made_or_found(source, kwargs, () if config is None else (config,))
    if located.model is None:
        name = source if isinstance(source, str) else getattr(source, "__name__", repr(source))
        raise MixerEquivError(f"{name} made None; expected a model: does it return what it makes?")
    return located


def _made_or_found(source: Any, kwargs: Mapping[str, Any], given: tuple[MixerConfig, ...]) -> Located:
    if not isinstance(source, str):
        try:
            return Located(_call(source, given, kwargs), True)
        except TypeError as error:
            if given or kwargs:
                raise
            name = getattr(source, "__name__", repr(source))
            advice = "give the config or kwargs that it is made with, or a model of it"
            raise MixerEquivError(f"{name} cannot be made without arguments ({error}); {advice}") from error
    if is_timm(source):
        if given:
            raise ConfigError(f"{source} is made with kwargs, and takes no config")
        create = _timm_maker(source.removeprefix("timm:"))
        return Located(_made(source, lambda: create(**kwargs), kwargs), True)
    found = object_at(source)
    if not inspect.isclass(found) and not inspect.isfunction(found):
        if kwargs or given:
            names = ", ".join((*("config" for _ in given), *kwargs))
            raise MixerEquivError(f"{source} is an object already, so that it takes no kwargs ({names})")
        return Located(found, False)
    return Located(_made(source, lambda: _call(found, given, kwargs), kwargs), True)


def _call(make: Any, given: tuple[MixerConfig, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a class or function, with the random keys and the mode too if it requires these and they are not given."""
    missing = [name for name in _required(make)[len(given) :] if name not in kwargs]
    known = {name: _KNOWN[name]() for name in missing if name in _KNOWN}
    return make(*given, **known, **kwargs)


# Arguments of constructors that are known by their names: the random keys of nnx, and the mode of inference.
_KNOWN: Mapping[str, Callable[[], Any]] = {
    "rngs": lambda: require("flax.nnx", "flax", "the random keys of an nnx model").Rngs(0),
    **{name: functools.partial(bool, value) for name, value in INFERENCE_MODE.items()},
}


def _required(make: Any) -> list[str]:
    """Names of the arguments without which a class or function cannot be called."""
    is_class = inspect.isclass(make)
    try:  # the metaclass of nnx hides the signature of its classes
        parameters = list(inspect.signature(make.__init__ if is_class else make).parameters.values())[is_class:]
    except (TypeError, ValueError):
        return []
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _to_be_given(make: Any) -> list[str]:
    """Names of the arguments that a user must give to a class or function."""
    return [name for name in _required(make) if name not in _KNOWN]


def object_at(source: str) -> Any:
    """Return the object at a place of a file or a package. Raises `MixerEquivError` where there is none."""
    place, name = (source, "") if source.endswith(".py") else source.rsplit(":", 1)
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    if not name:
        raise MixerEquivError(f"{place} is code; {what_to_type(place, module, _to_be_given)}")
    if not hasattr(module, name):
        raise MixerEquivError(no_such_name(place, module, name))
    return getattr(module, name)


def source_file(given: Any) -> Path | None:
    """The file with the code of a model, of a class or function, or of what is at a place that was imported before."""
    if isinstance(given, str):
        place, _, name = given.rpartition(":")
        if place.endswith(".py"):
            return Path(place)
        given = _timm_entry(name) if is_timm(given) else getattr(sys.modules[place], name)
    while isinstance(given, functools.partial):
        given = given.func
    file = inspect.getsourcefile(type(given) if is_model(given) else inspect.unwrap(given))
    return None if file is None else Path(file)


def import_timm() -> Any:
    """Import timm. Operators of torchvision that do not load, as of a CUDA build, are declared first."""
    try:
        return require("timm", "test", "a model of timm")
    except MissingDependencyError as error:
        if "torchvision::" not in str(error):
            raise
    torch = require("torch", "torch", "a model of timm")
    for schema in _TORCHVISION:
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(schema)
            _DECLARED.append(library)
    return require("timm", "test", "a model of timm")


def _timm_entry(name: str) -> Any:
    """The function of timm that makes the model called `name`, whatever weights its tag asks for."""
    return import_timm().models.model_entrypoint(name.partition(".")[0])


def _timm_maker(name: str) -> Any:
    """What makes a model of timm. Raises `MixerEquivError` for a name that timm does not have."""
    timm = import_timm()
    if ":" not in name and not timm.is_model(name):  # "hf-hub:..." is an address
        raise MixerEquivError(f"timm {timm.__version__} has no model {name}{did_you_mean(name, timm.list_models())}")
    return functools.partial(timm.create_model, name)


# Operators that torchvision looks up when it is imported, and that no Mixer calls.
_TORCHVISION = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_DECLARED: list[Any] = []  # an operator is undefined again when its library is collected


def _made(source: str, make: Any, kwargs: Mapping[str, Any]) -> Any:
    try:
        return make()
    except (Exception, SystemExit) as error:
        given = f"kwargs {dict(kwargs)}" if kwargs else "no kwargs"
        raise MixerEquivError(
            f"{source} cannot be made with {given} (--kwargs): {type(error).__name__}: {error}"
        ) from error


def _from_package(name: str) -> Any:
    if name.partition(".")[0] == "timm":
        import_timm()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise MixerEquivError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _from_file(path: Path) -> Any:
    """Import a file as a module, which can import its neighbours in the same folder."""
    if not os.path.isfile(path):
        raise MixerEquivError(f"{path} does not exist; a model is given as path/to/file.py:Name")
    taken = sys.modules.get(path.stem)
    same = taken is None or getattr(taken, "__file__", None) == str(path)
    name = path.stem if same else f"{path.stem} at {path}"  # another module of this name stays what it is
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MixerEquivError(f"{path} cannot be imported: Python has no loader for it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise MixerEquivError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module
