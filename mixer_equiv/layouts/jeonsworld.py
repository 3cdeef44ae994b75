"""jeonsworld/MLP-Mixer-Pytorch, which fine-tunes the published npz files with the erf GELU.

A file in this layout may hold weights of either GELU, and its names do not tell which. Source: models/modeling.py.
"""

from mixer_equiv.layouts.base import Conventions, Layout, table

JEONSWORLD = Layout(
    name="jeonsworld",
    summary="jeonsworld/MLP-Mixer-Pytorch",
    framework="torch",
    computes=Conventions(activation="gelu"),
    trained_with=None,
    advice={
        "activation": "replace nn.GELU() in MlpBlock by {torch_activation}",
        "layer_norm_eps": "give its nn.LayerNorm eps={layer_norm_eps:g}",
    },
    rows=table("""
        stem/kernel                                   stem.weight                             ph pw channels hidden -> hidden channels ph pw
        stem/bias                                     stem.bias                               hidden
        MixerBlock_{i}/LayerNorm_0/scale              layer.{i}.pre_norm.weight               hidden
        MixerBlock_{i}/LayerNorm_0/bias               layer.{i}.pre_norm.bias                 hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    layer.{i}.token_mlp_block.fc0.weight    tokens tokens_mlp -> tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_0/bias      layer.{i}.token_mlp_block.fc0.bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    layer.{i}.token_mlp_block.fc1.weight    tokens_mlp tokens -> tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/bias      layer.{i}.token_mlp_block.fc1.bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              layer.{i}.post_norm.weight              hidden
        MixerBlock_{i}/LayerNorm_1/bias               layer.{i}.post_norm.bias                hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  layer.{i}.channel_mlp_block.fc0.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    layer.{i}.channel_mlp_block.fc0.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  layer.{i}.channel_mlp_block.fc1.weight  channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    layer.{i}.channel_mlp_block.fc1.bias    hidden
        pre_head_layer_norm/scale                     pre_head_ln.weight                      hidden
        pre_head_layer_norm/bias                      pre_head_ln.bias                        hidden
        head/kernel                                   head.weight                             hidden classes -> classes hidden
        head/bias                                     head.bias                               classes
    """),
)
