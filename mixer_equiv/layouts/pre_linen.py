"""Checkpoints of the official Mixer from before flax.linen, which only big_vision's loader reads.

Modules without a name of their own carry their number among all modules of the parent: the two LayerNorms of a
block have their order, but not always the numbers 0 and 1. Kernels have additional axes of size 1 at places that
are recorded nowhere, so this layout is read and never written. Source: google-research/big_vision, big_vision/models/mlp_mixer.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mixer_equiv.layouts.base import OFFICIAL_CONVENTIONS, Binding, Layout, Shape, table

# A module without a name of its own is called by its class, such as LayerNorm_3.
_UNNAMED = re.compile(r"(?P<parent>.*/)(?P<class>[A-Z][A-Za-z]*)_(?P<number>\d+)(?P<rest>/[^/]+)")


def _tidy(layout: Layout, num_blocks: int, shapes: Mapping[str, Shape]) -> dict[str, tuple[str, Shape]]:
    """The name and shape of each array in the table: modules of a class numbered from 0, axes of size 1 dropped."""
    numbers: dict[tuple[str, str], set[int]] = {}
    matches = {name: match for name in shapes if (match := _UNNAMED.fullmatch(name))}
    for match in matches.values():
        numbers.setdefault((match["parent"], match["class"]), set()).add(int(match["number"]))
    names = dict.fromkeys(shapes, "")
    for name in shapes:
        match = matches.get(name)
        if match:
            place = sorted(numbers[match["parent"], match["class"]]).index(int(match["number"]))
            names[name] = f"{match['parent']}{match['class']}_{place}{match['rest']}"
    renamed = {name: (names[name] or name, shape) for name, shape in shapes.items()}
    return _squeeze(layout.parameters(num_blocks), renamed)


def _squeeze(
    parameters: Mapping[str, Binding], arrays: Mapping[str, tuple[str, Shape]]
) -> dict[str, tuple[str, Shape]]:
    """Drop axes of size 1 where the expected shape results; an axis whose true size is 1 is kept."""
    sizes = {}
    for new, shape in arrays.values():
        axes = parameters[new].row.foreign_axes.split() if new in parameters else []
        if len(axes) == 1:  # the size of a vector is known despite axes of size 1
            sizes[axes[0]] = math.prod(shape)
    result = {}
    for name, (new, shape) in arrays.items():
        wanted = parameters[new].symbolic_shape(sizes) if new in parameters else ()
        known = tuple(size for size in wanted if isinstance(size, int))
        fits = len(known) == len(wanted) and _without_ones(shape) == _without_ones(known)
        result[name] = (new, known if fits else shape)
    return result


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


PRE_LINEN = Layout(
    name="pre-linen",
    summary="the official model before flax.linen",
    framework="flax",
    computes=OFFICIAL_CONVENTIONS,
    trained_with=OFFICIAL_CONVENTIONS,
    advice={},
    read_only="the places of its kernels' axes of size 1 are recorded nowhere; write linen instead",
    tidy=_tidy,
    rows=table("""
        stem/kernel                                   embedding/kernel                                         ph pw channels hidden
        stem/bias                                     embedding/bias                                           hidden
        MixerBlock_{i}/LayerNorm_0/scale              Mixer/encoderblock_{i}/LayerNorm_0/scale                 hidden
        MixerBlock_{i}/LayerNorm_0/bias               Mixer/encoderblock_{i}/LayerNorm_0/bias                  hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    Mixer/encoderblock_{i}/token_mixing_phase_0/kernel1      tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_0/bias      Mixer/encoderblock_{i}/token_mixing_phase_0/bias1        tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    Mixer/encoderblock_{i}/token_mixing_phase_0/kernel2      tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_1/bias      Mixer/encoderblock_{i}/token_mixing_phase_0/bias2        tokens
        MixerBlock_{i}/LayerNorm_1/scale              Mixer/encoderblock_{i}/LayerNorm_1/scale                 hidden
        MixerBlock_{i}/LayerNorm_1/bias               Mixer/encoderblock_{i}/LayerNorm_1/bias                  hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  Mixer/encoderblock_{i}/channel_mixing_phase_0/kernel1    hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_0/bias    Mixer/encoderblock_{i}/channel_mixing_phase_0/bias1      channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  Mixer/encoderblock_{i}/channel_mixing_phase_0/kernel2    channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_1/bias    Mixer/encoderblock_{i}/channel_mixing_phase_0/bias2      hidden
        pre_head_layer_norm/scale                     Mixer/encoder_norm/scale                                 hidden
        pre_head_layer_norm/bias                      Mixer/encoder_norm/bias                                  hidden
        head/kernel                                   head/kernel                                              hidden classes
        head/bias                                     head/bias                                                classes
    """),
)
