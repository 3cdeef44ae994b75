"""`layout_of` and `port`: find the layout of somebody's model by running it, and put weights into the model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mixer_equiv.arrays.interop import stored_dtype
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.checkpoints.conversion import convert
from mixer_equiv.config import as_image, size_differences
from mixer_equiv.equivalence.judge.causes import departures
from mixer_equiv.equivalence.mixer.result import Unnamed
from mixer_equiv.equivalence.record.precision import on_device
from mixer_equiv.equivalence.sides.adapters import foreign_model_of
from mixer_equiv.equivalence.sides.base import Image
from mixer_equiv.equivalence.sides.foreign import ForeignSide
from mixer_equiv.equivalence.sides.foreign_model import ForeignModel
from mixer_equiv.equivalence.sides.mixer_search import search
from mixer_equiv.equivalence.sides.weights import checkpoint_of
from mixer_equiv.errors import (
    ConfigError,
    ConventionWarning,
    InexpressibleError,
    LayoutError,
    MixerEquivError,
    summarize,
)
from mixer_equiv.layouts import Layout


def layout_of(model: Any, image: Image, *, seed: int = 0) -> Layout:
    """Find the layout of a model's parameters, and the conventions of its code, by running it.

    `model` is any `torch.nn.Module`, Flax linen or nnx module that takes images of (channels, height,
    width) `image`. Nothing of it is changed. The result is a layout like any other: `convert` writes
    it, `load` and `convert` read it, `register_layout` makes it known by its names.

    Raises `InexpressibleError` for a model that is no Mixer, or whose weights no official one can
    have, with the reasons; `MixerEquivError` for one that cannot be run.
    """
    image = as_image(image)
    with on_device("cpu"):
        return _searched(foreign_model_of(model, image), image, seed).layout


def port(
    params: Any,
    model: Any,
    *,
    image: Image | None = None,
    allow_missing: Collection[str] = (),
    seed: int = 0,
) -> Checkpoint:
    """Put a Mixer's weights into somebody's model, whose names and shapes are found and not written by hand.

    `params` are a checkpoint, the path of one, or arrays by name. A torch or nnx model gets them in
    place, in its own dtype; a linen one holds none, so that `apply` takes the result's `params`.
    `image` is (channels, height, width), by default that of the weights. `allow_missing` are globs
    as `convert` takes them; what is left out stays as it is. A model without a head takes weights that
    have one, without it. Weights by the model's own names, in no known layout, are read by the layout
    found, if `image` is given.

    Returns the weights in the model's layout. Warns once (`ConventionWarning`), with all sentences, where the model
    computes something else than what they were trained with, rounds them, or has parameters that get none.
    Raises as `layout_of`, `ConversionError` for weights that do not fill the model, and `ConfigError`
    for those of another size.
    """
    given = None if image is None else as_image(image)
    with on_device("cpu"):
        source, target = _both(params, model, given, seed)
    has_head = target.config.num_classes > 0
    optional = allow_missing if has_head or isinstance(allow_missing, str) else (*allow_missing, "head/*")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        result = convert(source, to=target.layout, allow_missing=optional)
    differences = [
        difference
        for difference in size_differences(result.config, target.config)
        if difference.field != "num_classes"
        or any(row.in_head and row.foreign in result.arrays for row in target.layout.rows)
    ]
    if differences:
        raise ConfigError(
            f"the weights of {Path(source.source).name} do not fit {target.name}: {'; '.join(map(str, differences))}"
        )
    messages = [str(warning.message) for warning in caught]
    messages += [f"{target.name} {text}" for text in departures(target.found)]
    messages += _put_otherwise(result, target.model)
    if messages:
        warnings.warn("\n".join(dict.fromkeys(messages)), ConventionWarning, stacklevel=2)
    target.model.put(result.whole)
    return result


def _both(params: Any, model: Any, image: Image | None, seed: int) -> tuple[Checkpoint, ForeignSide]:
    """Read the weights and search the model, whose layout the weights may be in."""
    try:
        source = checkpoint_of(params)
    except LayoutError as error:
        if image is None:
            advice = "if they are in the model's own layout, give image=(channels, height, width)"
            raise LayoutError(f"{error}; {advice}") from error
        target = _searched(foreign_model_of(model, image), image, seed)
        return checkpoint_of(params, target.found), target
    assumed = image is None and source.image_size_is_assumed
    if image is None:
        image = source.config.in_channels, *source.config.image_hw
    elif source.image_size_is_assumed:
        config = source.config.resized(image[1:])
        source = dataclasses.replace(source, config=config, image_size_is_assumed=False)
    try:
        return source, _searched(foreign_model_of(model, image), image, seed)
    except MixerEquivError as error:
        if not assumed:
            raise
        size = "x".join(map(str, image))
        advice = f"the image was taken to be {size}, from the number of tokens; give image=(channels, height, width)"
        raise MixerEquivError(f"{error}; {advice}") from error


def _put_otherwise(result: Checkpoint, model: ForeignModel) -> list[str]:
    """Say which arrays the model rounds, and which of its parameters get none."""
    messages = []
    dtypes = {name: stored_dtype(name, own) for name, own in model.own.items()}
    rounded = [name for name, array in result.whole.items() if name in dtypes and _loses(array, dtypes[name])]
    if rounded:
        kinds = ", ".join(sorted({str(dtypes[name]) for name in rounded}))
        messages.append(
            f"{model.name} rounds {len(rounded)} of {len(result.whole)} arrays to {kinds}, the first is "
            f"{rounded[0]}; make the model of the dtype of the weights to keep every bit"
        )
    asked = {name.partition("[")[0] for name in result.layout.parameters(result.config.num_blocks)}
    if model.computed:
        computed = summarize(model.computed, 3)
        messages.append(f"{model.name} computes {computed} from other parameters, and has them but for rounding")
    untouched = [name for name in model.own if name not in result.whole and name not in asked]
    if untouched:
        messages.append(f"parameters of {model.name} that stay as they were: {summarize(untouched, 3)}")
    return messages


def _loses(array: np.ndarray, dtype: np.dtype) -> bool:
    """Whether rounding to `dtype` changes any number."""
    if array.dtype == dtype:
        return False
    with np.errstate(all="ignore"):
        return not np.array_equal(array.astype(dtype).astype(array.dtype), array, equal_nan=True)


def _searched(model: ForeignModel, image: Image, seed: int) -> ForeignSide:
    """Search a model for a Mixer. Raises `InexpressibleError` where none is found, or none that has a layout."""
    side = search(model, image, seed)
    if isinstance(side, ForeignSide) and side.is_named:
        return side
    if isinstance(side, ForeignSide):
        reasons: tuple[str, ...] = tuple(
            layout.reason for layout in (side.found.layout,) if isinstance(layout, Unnamed)
        )
    else:
        reasons = side.found.reasons
    raise InexpressibleError(f"{model.name} has no layout: {'; '.join(reasons)}", reasons=reasons)
