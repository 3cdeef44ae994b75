"""The PyTorch port of the tutorial. Source: jankrepl/mildlyoverfitted, github_adventures/mixer/ours.py."""

from mixer_equiv.layouts.base import Conventions, Layout, table

JANKREPL = Layout(
    name="jankrepl",
    aliases=("tutorial",),
    summary="jankrepl/mildlyoverfitted tutorial",
    framework="torch",
    computes=Conventions(activation="gelu", layer_norm_eps=1e-5),
    trained_with=Conventions(activation="gelu", layer_norm_eps=1e-5),
    advice={
        "activation": "replace nn.GELU() in MlpBlock by {torch_activation}",
        "layer_norm_eps": "give its three nn.LayerNorm eps={layer_norm_eps:g}",
    },
    rows=table("""
        stem/kernel                                   patch_embedder.weight                         ph pw channels hidden -> hidden channels ph pw
        stem/bias                                     patch_embedder.bias                           hidden
        MixerBlock_{i}/LayerNorm_0/scale              blocks.{i}.norm_1.weight                      hidden
        MixerBlock_{i}/LayerNorm_0/bias               blocks.{i}.norm_1.bias                        hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    blocks.{i}.token_mlp_block.linear_1.weight    tokens tokens_mlp -> tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_0/bias      blocks.{i}.token_mlp_block.linear_1.bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    blocks.{i}.token_mlp_block.linear_2.weight    tokens_mlp tokens -> tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/bias      blocks.{i}.token_mlp_block.linear_2.bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              blocks.{i}.norm_2.weight                      hidden
        MixerBlock_{i}/LayerNorm_1/bias               blocks.{i}.norm_2.bias                        hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  blocks.{i}.channel_mlp_block.linear_1.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    blocks.{i}.channel_mlp_block.linear_1.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  blocks.{i}.channel_mlp_block.linear_2.weight  channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    blocks.{i}.channel_mlp_block.linear_2.bias    hidden
        pre_head_layer_norm/scale                     pre_head_norm.weight                          hidden
        pre_head_layer_norm/bias                      pre_head_norm.bias                            hidden
        head/kernel                                   head_classifier.weight                        hidden classes -> classes hidden
        head/bias                                     head_classifier.bias                          classes
    """),
)
