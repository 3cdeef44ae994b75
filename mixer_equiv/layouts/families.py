"""Families of models that are no MLP-Mixers, told by the names and shapes of their parameters.

For messages about arrays, or models, that turn out to be no Mixer. Start at `family_of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mixer_equiv.layouts.base import Shape


class Family(NamedTuple):
    """A family: what it is called, and regular expressions each of which some name must match, with "/" for dots.

    `shapes_tell`, where names do not suffice, tells by the shapes.
    """

    words: str
    signs: tuple[str, ...]
    shapes_tell: Callable[[Mapping[str, Shape]], bool] | None = None


def _is_gated(shapes: Mapping[str, Shape]) -> bool:
    """Whether the second layer of a token MLP takes half of what the first gives."""
    pairs = [
        (shapes[name], shapes[other])
        for name in shapes
        if re.search(r"token\w*/fc1/weight$", name) and (other := name.replace("/fc1/", "/fc2/")) in shapes
        if len(shapes[name]) >= 2 and len(shapes[other]) >= 2
    ]
    return bool(pairs) and all(first[0] == 2 * second[1] for first, second in pairs)


def _is_depthwise(shapes: Mapping[str, Shape]) -> bool:
    """Whether a branch begins with a convolution of each channel alone, as no Mixer's does."""
    first = [shape for name, shape in shapes.items() if re.search(r"\d+/0/fn/0/weight$", name)]
    return any(len(shape) == 4 and shape[1] == 1 for shape in first)


_ATTENTION = (
    r"(^|/)(\w*attn\w*|\w*attention\w*|MultiHead\w*|mha)(/\w+)*/"
    r"(qkv|qk|q|k|v|query|key|value|[qkv]_proj|in_proj_weight|to_qkv|to_[qkv]|c_attn|query_key_value)(/|$)"
    r"|(^|/)to_qkv/|(^|/)in_proj_weight$"
)
_BLOCKS = r"(^|/)\w*(blocks?|layers?|stages)\w*/\d+/"

# The first that fits is taken: special ones come before general ones.
FAMILIES: Mapping[str, Family] = {
    "gMLP": Family(
        "gMLP, whose token mixing is a gate",
        (r"(^|/)((gate|sgu|spatial_gating\w*)/(proj|norm|weight|bias)|SpatialGating\w*/)",),
    ),
    "gMixer": Family(
        "gMixer, a Mixer with gated MLPs (GluMlp), half of whose first layer is a gate", (r"token",), _is_gated
    ),
    "ResMLP": Family(
        "ResMLP, which has affine layers for LayerNorms and one linear layer over tokens",
        (r"((norm\d*|[aA]ff\w*)/alpha|aff\w*/[gb])$",),
    ),
    "Sequencer": Family("Sequencer, which mixes tokens by LSTMs", (r"rnn_tokens/",)),
    "CycleMLP": Family("CycleMLP", (r"attn/sfc_[hw]/",)),
    "Vision Permutator": Family("Vision Permutator (ViP)", (r"attn/mlp_[hwc]/",)),
    "Wave-MLP": Family("Wave-MLP", (r"theta_[hw]_conv",)),
    "AS-MLP": Family("AS-MLP", (r"axial_shift/",)),
    "FocalNet": Family("FocalNet", (r"modulation/focal_layers/",)),
    "PoolFormer": Family(
        "PoolFormer or another MetaFormer",
        (_BLOCKS, r"(layer_scale_?\d|res_scale_?\d|token_mixer/(pool|pwconv|dwconv|q|qkv))(/|$)"),
    ),
    "ConvMixer": Family(
        "ConvMixer, which is made of convolutions and BatchNorms", (r"\d+/0/fn/\d+/weight$",), _is_depthwise
    ),
    "ConvNeXt": Family(
        "ConvNeXt",
        (
            r"((conv_dw|dwconv)/weight|features/\d+/\d+/block/0/weight|ConvNeXtBlock_\d+(/\w+)*/kernel)$",
            r"(gamma|layer_scale(_parameter)?|grn/weight)$",
        ),
    ),
    "CLIP": Family("CLIP, which has an encoder of text too", (r"(^|/)text_projection", _ATTENTION)),
    "Swin": Family("Swin Transformer", (r"relative_position_bias_table$", _ATTENTION, r"downsample/")),
    "language model": Family(
        "a language model", (r"(word_embeddings|embed_tokens|wte|tok_embeddings)/(weight|embedding)$", _ATTENTION)
    ),
    "ViT": Family(
        "a Vision Transformer (ViT)",
        (_ATTENTION, r"(pos_?embed\w*|position_embeddings|posembed\w*|cls_token|cls|class_token|class_embedding)(/|$)"),
    ),
    "attention": Family("a model with attention", (_ATTENTION,)),
    "recurrent": Family("a recurrent network", (r"weight_hh_l\d",)),
    "diffusion": Family("a U-Net, as diffusion models have", (r"(down_blocks|input_blocks)/\d+/",)),
    "ResNet": Family(
        "ResNet or one of its kind",
        (
            r"(layer\d+/\d+/conv1/weight|stages/\d+/blocks/\d+/conv1/weight|stages/\d+/layers/\d+/layer/\d+/convolution/weight"
            r"|ResNetBlock_\d+/Conv_0/kernel|block\d+/unit\d+/conv1/kernel)$",
        ),
    ),
    "convolutional": Family(
        "a convolutional network with BatchNorms", (r"running_mean$", r"(conv\w*|features|downsample)(/\w+)*/weight$")
    ),
}


def family_of(shapes: Mapping[str, Shape]) -> Family | None:
    """Name the family of the parameters of these shapes by their names; None if it is not known."""
    unified = {name.replace(".", "/"): shape for name, shape in shapes.items()}
    text = "\n".join(unified)
    for family in FAMILIES.values():
        told = all(re.search(sign, text, re.MULTILINE) for sign in family.signs)
        if told and (family.shapes_tell is None or family.shapes_tell(unified)):
            return family
    return None
