"""OpenMMLab's MMPreTrain: `MlpMixer` as the backbone of an `ImageClassifier`.

The weights that it publishes are timm's, so names do not tell which conventions a file was trained with.
Source: open-mmlab/mmpretrain, mmpretrain/models/backbones/mlp_mixer.py.
"""

from mixer_equiv.layouts.base import Conventions, Layout, table

MMPRETRAIN = Layout(
    name="mmpretrain",
    summary="MMPreTrain's MlpMixer with its LinearClsHead",
    framework="torch",
    computes=Conventions(activation="gelu", layer_norm_eps=1e-5),
    trained_with=None,
    advice={
        "activation": "give the backbone an act_cfg that computes {torch_activation}",
        "layer_norm_eps": "give the backbone norm_cfg=dict(type='LN', eps={layer_norm_eps:g})",
    },
    rows=table("""
        stem/kernel                                   backbone.patch_embed.projection.weight             ph pw channels hidden -> hidden channels ph pw
        stem/bias                                     backbone.patch_embed.projection.bias               hidden
        MixerBlock_{i}/LayerNorm_0/scale              backbone.layers.{i}.ln1.weight                     hidden
        MixerBlock_{i}/LayerNorm_0/bias               backbone.layers.{i}.ln1.bias                       hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    backbone.layers.{i}.token_mix.layers.0.0.weight    tokens tokens_mlp -> tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_0/bias      backbone.layers.{i}.token_mix.layers.0.0.bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    backbone.layers.{i}.token_mix.layers.1.weight      tokens_mlp tokens -> tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/bias      backbone.layers.{i}.token_mix.layers.1.bias        tokens
        MixerBlock_{i}/LayerNorm_1/scale              backbone.layers.{i}.ln2.weight                     hidden
        MixerBlock_{i}/LayerNorm_1/bias               backbone.layers.{i}.ln2.bias                       hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  backbone.layers.{i}.channel_mix.layers.0.0.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    backbone.layers.{i}.channel_mix.layers.0.0.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  backbone.layers.{i}.channel_mix.layers.1.weight    channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    backbone.layers.{i}.channel_mix.layers.1.bias      hidden
        pre_head_layer_norm/scale                     backbone.ln1.weight                                hidden
        pre_head_layer_norm/bias                      backbone.ln1.bias                                  hidden
        head/kernel                                   head.fc.weight                                     hidden classes -> classes hidden
        head/bias                                     head.fc.bias                                       classes
    """),
)
