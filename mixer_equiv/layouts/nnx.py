"""The Flax nnx model of this package, `mixer_equiv.models.nnx.MlpMixer`: the official names.

Its config allows any conventions, so names alone do not tell which ones its weights were trained with.
"""

import dataclasses

from mixer_equiv.layouts.official import LINEN

# The Flax nnx model of this package.
NNX = dataclasses.replace(
    LINEN,
    name="nnx",
    aliases=(),
    summary="mixer_equiv.models.nnx, names as in linen",
    trained_with=None,
    advice={
        "activation": "build it with MixerConfig(activation={activation!r})",
        "layer_norm_eps": "build it with MixerConfig(layer_norm_eps={layer_norm_eps:g})",
    },
)
