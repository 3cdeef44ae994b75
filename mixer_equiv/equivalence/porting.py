"""`layout_of` and `port`: other people's models as layouts, found by running them, and weights put into them."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mixer_equiv.checkpoint import Checkpoint, as_checkpoint, load
from mixer_equiv.convert import convert
from mixer_equiv.equivalence.adapters import candidate_of
from mixer_equiv.equivalence.candidate import Candidate
from mixer_equiv.equivalence.compare import size_differences
from mixer_equiv.equivalence.diagnose import told
from mixer_equiv.equivalence.found import Found
from mixer_equiv.errors import ConfigError, ConventionWarning, InexpressibleError, MixerEquivError
from mixer_equiv.layouts import Layout

Image = tuple[int, int, int]


def layout_of(model: Any, image: Image, *, seed: int = 0) -> Layout:
    """The layout of a model's parameters, and what its code computes, found by running it.

    `model` is any `torch.nn.Module`, Flax linen or nnx module that takes images of (channels, height,
    width) `image`. Nothing of it is changed. The result is a layout like any other: `convert` writes
    it, `load` and `convert` read it, `register_layout` makes it known by its names.

    Raises `InexpressibleError` for a model that is no Mixer, or whose weights no official one can
    have, with the reasons; `MixerEquivError` for one that cannot be run.
    """
    layout = _found(candidate_of(model, image), image, seed).layout
    assert layout is not None
    return layout


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
    as `convert` takes them; what is left out stays as it is.

    Returns the weights in the model's layout. Warns (`ConventionWarning`) where the model computes
    something else than what they were trained with. Raises as `layout_of`, `ConversionError` for
    weights that do not fill the model, and `ConfigError` for those of another size.
    """
    source = load(params) if isinstance(params, str | os.PathLike) else as_checkpoint(params)
    assumed = image is None and source.image_size_is_assumed
    if image is None:
        image = source.config.in_channels, *source.config.image_hw
    elif source.image_size_is_assumed:
        config = source.config.resized(image[1:])
        source = dataclasses.replace(source, config=config, image_size_is_assumed=False)
    candidate = candidate_of(model, image)
    try:
        found = _found(candidate, image, seed)
    except MixerEquivError as error:
        if not assumed:
            raise
        size = "x".join(map(str, image))
        advice = f"the image was taken to be {size}, from the number of tokens; give image=(channels, height, width)"
        raise MixerEquivError(f"{error}; {advice}") from error
    assert found.layout is not None
    assert found.config is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConventionWarning)
        result = convert(source, to=found.layout, allow_missing=allow_missing)
    differences = [
        text
        for text in size_differences(result.config, found.config)
        if not text.startswith("num_classes")
        or any(row.in_head and row.foreign in result.arrays for row in found.layout.rows)
    ]
    if differences:
        raise ConfigError(
            f"the weights of {Path(source.source).name} do not fit {candidate.name}: {'; '.join(differences)}"
        )
    messages = [str(warning.message) for warning in caught]
    messages += [f"{candidate.name} {text}" for text in told(found)]
    for message in messages:
        warnings.warn(message, ConventionWarning, stacklevel=2)
    candidate.put(result.whole)
    return result


def _found(candidate: Candidate, image: Image, seed: int) -> Found:
    found = candidate.find(image, seed)
    if found.layout is None:
        reasons = found.reasons or (f"it differs from every Mixer at {found.missing}",)
        raise InexpressibleError(f"{candidate.name} has no layout: {'; '.join(reasons)}", reasons=reasons)
    return found
