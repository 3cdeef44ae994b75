"""What can be verified: a program, with or without weights of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import require
from mixer_equiv.checkpoints.checkpoint import Checkpoint, as_checkpoint
from mixer_equiv.checkpoints.conversion import convert, relabel
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.checkpoints.io import load
from mixer_equiv.config import MixerConfig, as_pair
from mixer_equiv.equivalence.mixer.result import Found
from mixer_equiv.equivalence.sides.adapters import VERIFIED, candidate_of, is_model
from mixer_equiv.equivalence.sides.candidate import Candidate
from mixer_equiv.equivalence.sides.frameworks import PROGRAMS, Taps, run_module
from mixer_equiv.equivalence.sides.locate import is_maker, is_source, model_at
from mixer_equiv.errors import ConfigError, ConversionError, MixerEquivError
from mixer_equiv.layouts import LINEN, NNX, OFFICIAL_CONVENTIONS, TORCH, Layout

Image = tuple[int, int, int]

# Every size another one, more blocks than digits, so that no two axes can be confused.
DEFAULT_CONFIG = MixerConfig(
    num_classes=7,
    num_blocks=12,
    patch_size=(2, 3),
    image_size=(8, 9),
    in_channels=3,
    hidden_dim=20,
    tokens_mlp_dim=11,
    channels_mlp_dim=26,
)

# No reader of the residual stream sees what this adds, since each begins with a LayerNorm.
UNOBSERVABLE = "MixerBlock_{i}/token_mixing/Dense_1/bias"
_LAYOUT_OF = {"flax": LINEN, "nnx": NNX, "torch": TORCH, "reference": LINEN}


@dataclasses.dataclass(frozen=True)
class Subject:
    """One side of a comparison: a name to show, a program to run, sizes, and perhaps weights.

    `from_weights` tells a checkpoint, whose weights are what is asked about, from a model. Where
    the caller gave a torch module of ours, that `module` is run, and not one built from its config;
    where it is a model of somebody else's, `candidate`, and what it was `found` to be.
    """

    name: str
    program: str
    config: MixerConfig
    checkpoint: Checkpoint | None = None
    from_weights: bool = False
    module: Any = None
    candidate: Candidate | None = None
    found: Found | None = None

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The subject's weights under canonical names, checked to fill their layout."""
        if self.checkpoint is None:
            raise MixerEquivError(f"{self.name} has no weights; give a checkpoint, or verify with random weights")
        self.checkpoint.check()
        return relabel(self.checkpoint.arrays, self.checkpoint.layout, LINEN, self.checkpoint.config)

    @property
    def layout(self) -> Layout:
        """The layout in which the subject's parameters are named."""
        if self.found is not None and self.found.layout is not None:
            return self.found.layout
        own = self.checkpoint.layout if self.checkpoint and self.from_weights else None
        return own or _LAYOUT_OF[self.program]

    @property
    def framework(self) -> str:
        """That of the program; the reference has none, and what needs one takes Flax."""
        return "torch" if self.program == "torch" else "flax"

    def run(self, images: np.ndarray, dtype: Any, *, program: str | None = None) -> Taps:
        """Taps in `dtype`, by the subject's own program or another one."""
        if self.candidate is not None and program is None:
            assert self.found is not None
            return self.candidate.taps(self.found, self.weights, images, dtype)
        if self.module is not None and program is None:
            return run_module(self.module, self.config, self.weights, images.astype(dtype))
        return PROGRAMS[program or self.program](self.config, self.weights, images.astype(dtype))

    def replace(self, **changes: Any) -> Subject:
        return dataclasses.replace(self, **changes)


def subjects(
    a: Any,
    b: Any = None,
    *,
    config: MixerConfig | None = None,
    kwargs: Mapping[str, Any] | None = None,
    image: Image | None = None,
    sizes: MixerConfig | None = None,
    allow_missing: Collection[str] = (),
    seed: int = 0,
) -> tuple[Subject, Subject]:
    """Both sides of a comparison; `verify` says what `a` and `b` may be, and what stands in for no `b`.

    Of `config`, models are made and built-ins are; `kwargs` are what a model is made with besides, else
    `MixerConfig` fields for built-ins; `image` (channels, height, width) is for all.
    Built-ins without a variant are of `sizes`, or of the other side's. `allow_missing` are globs of
    parameters that checkpoints may lack, as `convert` takes them.
    """
    named = [None if source is None else _builtin(source) for source in (a, b)]
    placed = [
        is_maker(source) or (isinstance(source, str) and not builtin and is_source(source))
        for source, builtin in zip((a, b), named, strict=True)
    ]
    fields = {**(config.to_dict() if config else {}), **({} if any(placed) else kwargs or {})}
    made = [
        model_at(source, kwargs or {}, config) if place else source
        for source, place in zip((a, b), placed, strict=True)
    ]
    image = image or (_of_config(config) if config else _image_of(made, kwargs or {}))
    if image is not None:
        fields.update(in_channels=image[0], image_size=tuple(image[1:]))
    read = [
        None if source is None or builtin else _holder(source, image, allow_missing, seed)
        for source, builtin in zip(made, named, strict=True)
    ]
    if b is None:
        if read[0] is not None and read[0].from_weights:
            read[1] = port(read[0])
        else:
            ours = read[0] is not None and read[0].candidate is None
            program = named[0][0] if named[0] else read[0].program if read[0] and ours else ""
            named[1] = ("torch" if program == "flax" else "flax", named[0][1] if named[0] else None)
    if config is not None:
        _check_config(config, image, named, placed)
    if kwargs and not any(named) and not any(placed):
        raise ConfigError(f"kwargs ({', '.join(kwargs)}) are for {', '.join(PROGRAMS)}, and none of them is here")
    holders = _same_image([holder for holder in read if holder])
    sizes = holders[0].config if holders else sizes
    if any(holder.found is not None and holder.found.config is None for holder in holders):
        fields = {}  # no Mixer, whose image may be cut into no patches
    sides = []
    for name in named:
        if name:
            program, variant = name
            config = MixerConfig.from_name(variant) if variant is not None else _official(sizes or DEFAULT_CONFIG)
            shown = program if variant is None else f"{program}:{variant}"
            sides.append(Subject(shown, program, MixerConfig.from_dict({**config.to_dict(), **fields})))
        else:
            sides.append(holders.pop(0))
    return sides[0], sides[1]


def port(side: Subject) -> Subject:
    """A checkpoint's port to the other framework. Warns as `convert` does."""
    assert side.checkpoint is not None
    target = "torch" if side.program == "flax" else "linen"
    return _from_checkpoint(convert(side.checkpoint, to=target), f"its port ({target})")


def _builtin(source: Any) -> tuple[str, str | None] | None:
    """Program and variant, if `source` names a built-in."""
    if not isinstance(source, str):
        return None
    program, colon, variant = source.partition(":")
    return (program, variant if colon else None) if program in PROGRAMS else None


def _of_config(config: MixerConfig) -> Image:
    return config.in_channels, *config.image_hw


def _check_config(
    config: MixerConfig, image: Image | None, named: list[tuple[str, str | None] | None], placed: list[bool]
) -> None:
    """Raise `ConfigError` for a config that something else contradicts, or that nothing is made of."""
    if image is not None and tuple(image) != _of_config(config):
        raise ConfigError(f"image is {tuple(image)}, and that of the config {_of_config(config)}; the config is enough")
    variants = [f"{name[0]}:{name[1]}" for name in named if name and name[1] is not None]
    if variants:
        raise ConfigError(f"{' and '.join(variants)} have a config of their own, and another one is given")
    if not any(named) and not any(placed):
        raise ConfigError(
            f"config is for classes, functions that make a model, and {', '.join(PROGRAMS)}: none is here"
        )


def _image_of(sources: list[Any], kwargs: Mapping[str, Any]) -> Image | None:
    """The image that a model says it takes, as timm's do, or its arguments."""
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


def _holder(source: Any, image: Image | None, allow_missing: Collection[str], seed: int) -> Subject:
    """The subject of a source that has a config of its own: a checkpoint or a model."""
    if isinstance(source, Subject):
        return source
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.exists() and not path.name.lower().endswith(SUFFIXES):
            raise MixerEquivError(f"{str(path)!r} is neither a file nor the name of a model; {VERIFIED}")
        source = load(path)
    if isinstance(source, Mapping):
        checkpoint = as_checkpoint(source)
        if allow_missing:
            to = LINEN if checkpoint.layout.read_only else checkpoint.layout
            checkpoint = convert(checkpoint, to=to, allow_missing=allow_missing)
        return _with_image(_from_checkpoint(checkpoint), image)
    if is_model(source) and not type(source).__module__.startswith("mixer_equiv.models."):
        return _foreign(source, image, seed)
    module, _, name = f"{type(source).__module__}.{type(source).__qualname__}".rpartition(".")
    program = _PROGRAM_OF.get(module.removeprefix("mixer_equiv.models.").partition(".")[0], "")
    if name != "MlpMixer" or not program:
        raise MixerEquivError(f"found a {module}.{name}; {VERIFIED}")
    weights = None
    if program in _WEIGHTS_OF:
        weights = Checkpoint.from_arrays(
            _WEIGHTS_OF[program](source),
            layout=_LAYOUT_OF[program],
            config=source.config,
            source=f"the {program} model",
        )
    own = source if program == "torch" else None
    return _with_image(Subject(program, program, source.config, weights, module=own), image)


# By the name of the package in `mixer_equiv.models`.
_PROGRAM_OF = {"flax": "flax", "nnx": "nnx", "torch": "torch", "numpy": "reference"}


def _foreign(model: Any, image: Image | None, seed: int) -> Subject:
    """The subject of somebody else's model, once it was searched for a Mixer."""
    if image is None:
        raise ConfigError(
            f"the image that {type(model).__name__} takes is not known; give image=(channels, height, width), "
            "--image 3x224x224"
        )
    candidate = candidate_of(model, image)
    found = candidate.find(image, seed)
    own = None
    if found.layout is not None and candidate.own:
        with contextlib.suppress(ConversionError):  # on the meta device, where random weights do all the same
            own = candidate.checkpoint(found)
    config = found.config or DEFAULT_CONFIG.replace(num_blocks=found.depth)
    return Subject(candidate.name, candidate.framework, config, own, candidate=candidate, found=found)


def _nnx_params(model: Any) -> Mapping[str, Any]:
    nnx = require("flax.nnx", "flax", "reading an nnx model")
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# The weights of a model that holds them itself.
_WEIGHTS_OF: dict[str, Callable[[Any], Mapping[str, Any]]] = {
    "torch": lambda model: model.state_dict(),
    "nnx": _nnx_params,
}


def _from_checkpoint(checkpoint: Checkpoint, name: str | None = None) -> Subject:
    """A checkpoint's weights, in our model of its layout's framework."""
    shown = name or f"{Path(checkpoint.source).name} ({checkpoint.layout.name})"
    return Subject(shown, checkpoint.layout.framework, checkpoint.config, checkpoint, from_weights=True)


def _with_image(side: Subject, image: Image | None) -> Subject:
    if image is None:
        return side
    channels, *size = image
    if channels != side.config.in_channels:
        raise ConfigError(f"the image has {channels} channels and {side.name} takes {side.config.in_channels}")
    if side.module is not None and tuple(size) != side.config.image_hw:
        took, given = ("x".join(map(str, pair)) for pair in (side.config.image_hw, size))
        raise ConfigError(f"the image is {given}, and this model of {side.name} takes {took}")
    return _resized(side, (size[0], size[1]))


def _resized(side: Subject, image_hw: tuple[int, int]) -> Subject:
    config = side.config.resized(image_hw)
    checkpoint = side.checkpoint and dataclasses.replace(side.checkpoint, config=config, image_size_is_assumed=False)
    return side.replace(config=config, checkpoint=checkpoint)


def _same_image(sides: list[Subject]) -> list[Subject]:
    """An image size that was only assumed gives way to the other side's."""
    return [_following(side, other) for side, other in zip(sides, reversed(sides), strict=True)]


def _following(side: Subject, other: Subject) -> Subject:
    assumed = side.checkpoint is not None and side.checkpoint.image_size_is_assumed
    alike = side.config.patch_hw == other.config.patch_hw and side.config.num_tokens == other.config.num_tokens
    return _resized(side, other.config.image_hw) if assumed and alike else side


def _official(config: MixerConfig) -> MixerConfig:
    return config.replace(
        activation=OFFICIAL_CONVENTIONS.activation, layer_norm_eps=OFFICIAL_CONVENTIONS.layer_norm_eps
    )
