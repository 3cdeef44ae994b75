"""`resolve`: make the two sides of a comparison of names, paths, models and checkpoints.

Start reading at `resolve`. `verify` says what may be given.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.convention_warnings import convention_warnings
from mixer_equiv.checkpoints.conversion import convert, expected_by
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load
from mixer_equiv.config import MixerConfig, as_pair
from mixer_equiv.equivalence.mixer.official_program import with_official_conventions
from mixer_equiv.equivalence.sides.adapters import VERIFIED, foreign_model_of, is_model
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG, Image, MixerSide, NotAMixer
from mixer_equiv.equivalence.sides.built_in import LAYOUT_OF, BuiltInSide
from mixer_equiv.equivalence.sides.code_files import collect
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.lazy_modules import initialize
from mixer_equiv.equivalence.sides.locate import is_maker, is_source, model_at
from mixer_equiv.equivalence.sides.mixer_search import search
from mixer_equiv.equivalence.sides.runners import RUNNERS
from mixer_equiv.equivalence.sides.stored import StoredSide
from mixer_equiv.errors import ConfigError, ConventionWarning, MixerEquivError, did_you_mean
from mixer_equiv.layouts import LINEN

Side = MixerSide | NotAMixer


@dataclasses.dataclass(frozen=True)
class BuiltInName:
    """The name of a model of ours: "flax", or "flax:B/16" with a published `variant`."""

    runner: str
    variant: str | None

    @classmethod
    def of(cls, source: Any) -> BuiltInName | None:
        """The name, if `source` is one."""
        if not isinstance(source, str):
            return None
        runner, colon, variant = source.partition(":")
        return cls(runner, variant if colon else None) if runner in RUNNERS else None

    def __str__(self) -> str:
        return self.runner if self.variant is None else f"{self.runner}:{self.variant}"

    def side(self, sizes: MixerConfig, fields: Mapping[str, Any]) -> BuiltInSide:
        """Make the side: of the variant or else of `sizes`, with some `fields` of the config changed."""
        config = with_official_conventions(sizes) if self.variant is None else MixerConfig.from_name(self.variant)
        return BuiltInSide(str(self), self.runner, MixerConfig.from_dict({**config.to_dict(), **fields}))


def resolve(
    a: Any,
    b: Any = None,
    *,
    config: MixerConfig | None = None,
    kwargs: Mapping[str, Any] | None = None,
    image: Image | None = None,
    sizes: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
    seed: int = 0,
) -> tuple[Side, Side]:
    """Read both sides of a comparison; `verify` says what `a` and `b` may be, and what stands in for no `b`.

    Classes, functions and built-ins are made with `config`. `kwargs` are further arguments of a class, a function or
    a model at a place, or else fields of `MixerConfig` for built-ins. `image` is (channels, height, width), for both.
    Built-ins without a variant have the sizes of the other side, or else `sizes`. `allow_missing` are globs of
    parameters that checkpoints may lack, as `convert` takes them. Raises `MixerEquivError` for what cannot be read.
    """
    given = [_Given.of(source, config, kwargs or {}) for source in (a, b)]
    is_made = any(one.is_made for one in given)
    image = image or (_image_of(config) if config else _image_told([one.source for one in given], kwargs or {}))
    for one in given:
        if one.is_new and image is not None:
            initialize(one.source, image)
    ends = [one.name or _read(one.source, image, allow_missing, seed) for one in given if one.source is not None]
    if b is None:
        ends.append(_counterpart(ends[0]))
    names = [end for end in ends if isinstance(end, BuiltInName)]
    _check_is_used(config, kwargs or {}, image, names, is_made)
    read = _of_one_image([end for end in ends if not isinstance(end, BuiltInName)])
    fields: dict[str, Any] = {}
    if not any(isinstance(side, NotAMixer) for side in read):  # the image may not be divisible into its patches
        fields = _fields(config, {} if is_made else kwargs or {}, image)
    made = next((side.config for side in read if not isinstance(side, NotAMixer)), sizes or DEFAULT_CONFIG)
    sides = [end.side(made, fields) if isinstance(end, BuiltInName) else read.pop(0) for end in ends]
    return sides[0], sides[1]


@dataclasses.dataclass(frozen=True)
class _Given:
    """One argument of `resolve`: the name of a built-in, or a source.

    `is_made` tells whether it was made by a class or function or is from a place, `is_new` whether nobody else has it.
    """

    source: Any
    name: BuiltInName | None = None
    is_made: bool = False
    is_new: bool = False

    @classmethod
    def of(cls, source: Any, config: MixerConfig | None, kwargs: Mapping[str, Any]) -> _Given:
        name = BuiltInName.of(source)
        if name is None and (is_maker(source) or (isinstance(source, str) and is_source(source))):
            located = model_at(source, kwargs, config)
            collect(located.model)
            return cls(located.model, is_made=True, is_new=located.is_new)
        return cls(source, name)


def _counterpart(side: Side | BuiltInName) -> Side | BuiltInName:
    """The second side, where one is given: the port of a checkpoint; for our Flax model the torch one; else Flax.

    Somebody else's torch model is compared with the NumPy reference, so that neither JAX nor Flax is imported.
    """
    if isinstance(side, StoredSide):
        return _port(side)
    if isinstance(side, ForeignSide) and side.runner == "torch":
        return BuiltInName("reference", None)
    runner = side.runner if isinstance(side, BuiltInName | BuiltInSide) else ""
    variant = side.variant if isinstance(side, BuiltInName) else None
    return BuiltInName("torch" if runner == "flax" else "flax", variant)


def _port(side: StoredSide) -> StoredSide:
    """Port a checkpoint to the other framework. Warns as `convert` does."""
    target = "torch" if side.runner == "flax" else "linen"
    return _stored(convert(side.own_weights, to=target), f"its port ({target})")


def _fields(config: MixerConfig | None, kwargs: Mapping[str, Any], image: Image | None) -> dict[str, Any]:
    """The fields that the caller gave for built-ins."""
    told = {} if image is None else {"in_channels": image[0], "image_size": tuple(image[1:])}
    return {**(config.to_dict() if config else {}), **kwargs, **told}


def _image_of(config: MixerConfig) -> Image:
    return config.in_channels, *config.image_hw


def _check_is_used(
    config: MixerConfig | None,
    kwargs: Mapping[str, Any],
    image: Image | None,
    names: Collection[BuiltInName],
    is_made: bool,
) -> None:
    """Raise `ConfigError` for a config or kwargs that no side uses, and for a config that an argument contradicts."""
    if config is not None:
        if image is not None and tuple(image) != _image_of(config):
            raise ConfigError(
                f"image is {tuple(image)}, and that of the config {_image_of(config)}; the config is enough"
            )
        variants = [str(name) for name in names if name.variant is not None]
        if variants:
            raise ConfigError(f"{' and '.join(variants)} have a config of their own, and another one is given")
        if not names and not is_made:
            raise ConfigError(
                f"config is for classes, functions that make a model, and {', '.join(RUNNERS)}: none is here"
            )
    if kwargs and not names and not is_made:
        raise ConfigError(f"kwargs ({', '.join(kwargs)}) are for {', '.join(RUNNERS)}, and none of them is here")


def _image_told(sources: list[Any], kwargs: Mapping[str, Any]) -> Image | None:
    """The image size that a model states, as those of timm do, or that its arguments state."""
    for source in sources:
        told = getattr(source, "pretrained_cfg", None) or getattr(source, "default_cfg", None)
        if is_model(source) and isinstance(told, Mapping) and len(told.get("input_size", ())) == 3:
            channels, height, width = told["input_size"]
            return channels, height, width
    if not any(map(is_model, sources)):
        return None
    size = next((kwargs[name] for name in ("image_size", "img_size") if name in kwargs), None)
    channels = next((kwargs[name] for name in ("in_channels", "in_chans", "channels") if name in kwargs), 3)
    if size is None:
        return None
    height, width = as_pair("image_size", tuple(size) if isinstance(size, list) else size)
    return channels, height, width


def _read(source: Any, image: Image | None, allow_missing: Collection[str], seed: int) -> Side:
    """Make the side of a checkpoint, the path of one, or a model."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not os.path.exists(path) and not path.name.lower().endswith(SUFFIXES):
            near = did_you_mean(str(source).partition(":")[0], (*RUNNERS, "timm"))
            raise MixerEquivError(f"{str(path)!r} is neither a file nor the name of a model{near}; {VERIFIED}")
        source = load(path)
    if isinstance(source, Mapping):
        return _from_arrays(source, image, allow_missing)
    if is_model(source) and not type(source).__module__.startswith("mixer_equiv.models."):
        return _foreign(source, image, seed)
    side = _ours(source, image)
    # What is hooked onto a model may remember, or tell images apart.
    return _foreign(source, image or _image_of(side.config), seed) if _is_hooked(side.module) else side


def _from_arrays(arrays: Mapping[str, Any], image: Image | None, allow_missing: Collection[str]) -> StoredSide:
    checkpoint = as_checkpoint(arrays)
    if allow_missing:
        to = LINEN if checkpoint.layout.read_only else checkpoint.layout
        checkpoint = convert(checkpoint, to=to, allow_missing=allow_missing)
    side = _stored(checkpoint)
    _warn_of_code_that_is_not_run(checkpoint, side.name)
    if image is None:
        return side
    _check_channels(side, image)
    return side.resized((image[1], image[2]))


def _warn_of_code_that_is_not_run(checkpoint: Checkpoint, name: str) -> None:
    """Warn where the layout's own code computes something else than the model of ours that runs the weights."""
    layout = checkpoint.layout
    if layout in LAYOUT_OF.values():
        return
    for message in convention_warnings(*expected_by(checkpoint), layout):
        no_code = f"{name} is weights alone, and no code of {layout.name} was run"
        warnings.warn(f"{no_code}: {message}", ConventionWarning, stacklevel=2)


def _stored(checkpoint: Checkpoint, name: str | None = None) -> StoredSide:
    shown = name or f"{Path(checkpoint.source).name} ({checkpoint.layout.name})"
    return StoredSide(shown, checkpoint, checkpoint.config)


def _foreign(model: Any, image: Image | None, seed: int) -> ForeignSide | NotAMixer:
    """Search somebody else's model for a Mixer, and make the side of it."""
    if image is None:
        raise ConfigError(
            f"the image that {type(model).__name__} takes is not known: give image=(channels, height, width), on the "
            "command line --image CxHxW such as 3x224x224"
        )
    return search(foreign_model_of(model, image), image, seed)


def _ours(model: Any, image: Image | None) -> BuiltInSide:
    """Make the side of a model of this package; one of torch or nnx brings its weights."""
    module, _, name = f"{type(model).__module__}.{type(model).__qualname__}".rpartition(".")
    runner = _RUNNER_OF.get(module.removeprefix("mixer_equiv.models.").partition(".")[0], "")
    if name != "MlpMixer" or not runner:
        raise MixerEquivError(f"found a {module}.{name}; {VERIFIED}")
    weights = None
    if runner in _WEIGHTS_OF:
        weights = Checkpoint.from_arrays(
            _WEIGHTS_OF[runner](model),
            layout=LAYOUT_OF[runner],
            config=model.config,
            source=f"the {runner} model",
        )
    side = BuiltInSide(runner, runner, model.config, weights, module=model if runner == "torch" else None)
    if image is None:
        return side
    _check_channels(side, image)
    size = image[1], image[2]
    if side.module is not None and size != side.config.image_hw:
        took, given = ("x".join(map(str, pair)) for pair in (side.config.image_hw, size))
        raise ConfigError(f"the image is {given}, and this model of {side.name} takes {took}")
    config = side.config.resized(size)
    return dataclasses.replace(side, config=config, own_weights=weights and dataclasses.replace(weights, config=config))


def _is_hooked(module: Any) -> bool:
    """Whether code was put into a torch module of ours: hooks, or a `forward` of one object alone."""
    return module is not None and any(
        "forward" in vars(part) or any(vars(part).get(hooks) for hooks in _HOOKS) for part in module.modules()
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# Runners by the name of the package in `mixer_equiv.models`.
_RUNNER_OF = {"flax": "flax", "nnx": "nnx", "torch": "torch", "numpy": "reference"}


def _nnx_params(model: Any) -> Mapping[str, Any]:
    nnx = require("flax.nnx", "flax", "reading an nnx model")
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# How to read the weights of a model that holds them itself, by runner.
_WEIGHTS_OF: dict[str, Callable[[Any], Mapping[str, Any]]] = {
    "torch": lambda model: model.state_dict(),
    "nnx": _nnx_params,
}


def _check_channels(side: MixerSide, image: Image) -> None:
    if image[0] != side.config.in_channels:
        raise ConfigError(f"the image has {image[0]} channels and {side.name} takes {side.config.in_channels}")


def _of_one_image(sides: list[Side]) -> list[Side]:
    """Give a side whose image size was only assumed the size of the other."""
    return [_following(side, other) for side, other in zip(sides, reversed(sides), strict=True)]


def _following(side: Side, other: Side) -> Side:
    if not isinstance(side, StoredSide) or isinstance(other, NotAMixer) or not side.own_weights.image_size_is_assumed:
        return side
    alike = side.config.patch_hw == other.config.patch_hw and side.config.num_tokens == other.config.num_tokens
    return side.resized(other.config.image_hw) if alike else side
