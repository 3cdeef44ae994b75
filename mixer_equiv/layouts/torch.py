"""The torch model of this package, `mixer_equiv.models.torch.MlpMixer`: the official names in torch's spelling.

Its config allows any conventions, so names alone do not tell which ones its weights were trained with.
"""

from mixer_equiv.layouts.base import Conventions, Layout, table

# The torch model of this package.
TORCH = Layout(
    name="torch",
    summary="mixer_equiv.models.torch",
    framework="torch",
    computes=Conventions(),
    trained_with=None,
    advice={
        "activation": "build it with MixerConfig(activation={activation!r})",
        "layer_norm_eps": "build it with MixerConfig(layer_norm_eps={layer_norm_eps:g})",
    },
    rows=table("""
        stem/kernel                                   stem.weight                               ph pw channels hidden -> hidden channels ph pw
        stem/bias                                     stem.bias                                 hidden
        MixerBlock_{i}/LayerNorm_0/scale              blocks.{i}.layer_norm_0.weight            hidden
        MixerBlock_{i}/LayerNorm_0/bias               blocks.{i}.layer_norm_0.bias              hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    blocks.{i}.token_mixing.dense_0.weight    tokens tokens_mlp -> tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_0/bias      blocks.{i}.token_mixing.dense_0.bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    blocks.{i}.token_mixing.dense_1.weight    tokens_mlp tokens -> tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/bias      blocks.{i}.token_mixing.dense_1.bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              blocks.{i}.layer_norm_1.weight            hidden
        MixerBlock_{i}/LayerNorm_1/bias               blocks.{i}.layer_norm_1.bias              hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  blocks.{i}.channel_mixing.dense_0.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    blocks.{i}.channel_mixing.dense_0.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  blocks.{i}.channel_mixing.dense_1.weight  channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    blocks.{i}.channel_mixing.dense_1.bias    hidden
        pre_head_layer_norm/scale                     pre_head_layer_norm.weight                hidden
        pre_head_layer_norm/bias                      pre_head_layer_norm.bias                  hidden
        head/kernel                                   head.weight                               hidden classes -> classes hidden
        head/bias                                     head.bias                                 classes
    """),
)
