"""The official Mixer's checkpoints from before flax.linen, which only big_vision's loader reads.

Modules that the old code left unnamed carry the number that they had among all modules of their
parent, so that the two LayerNorms of a block need not be 0 and 1; in the order of these numbers they
are. Kernels have axes of size 1, and where they stand is recorded nowhere: nothing can be written
so. Source: google-research/big_vision, big_vision/models/mlp_mixer.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mixer_equiv.layouts.base import OFFICIAL_CONVENTIONS, Binding, Layout, Shape, table

# A module is unnamed where it is called by its class, such as LayerNorm_3.
_UNNAMED = re.compile(r"(?P<parent>.*/)(?P<class>[A-Z][A-Za-z]*)_(?P<number>\d+)(?P<rest>/[^/]+)")


def _tidy(layout: Layout, num_blocks: int, shapes: Mapping[str, Shape]) -> dict[str, tuple[str, Shape]]:
    """New name and shape of each array: unnamed modules numbered from 0, and axes of size 1 dropped."""
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
    tidied = {name: (names[name] or name, shape) for name, shape in shapes.items()}
    return _squeezed(layout.parameters(num_blocks), tidied)


def _squeezed(
    parameters: Mapping[str, Binding], arrays: Mapping[str, tuple[str, Shape]]
) -> dict[str, tuple[str, Shape]]:
    """Axes of size 1 dropped where that gives the expected shape, so that a true size of 1 is not lost."""
    sizes = {}
    for new, shape in arrays.values():
        axes = parameters[new].row.foreign_axes.split() if new in parameters else []
        if len(axes) == 1:  # of a vector the size is known, whatever axes of size 1 it has
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
    read_only="where its kernels had axes of size 1 is recorded nowhere; write linen instead",
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
