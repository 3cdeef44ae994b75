"""lucidrains/mlp-mixer-pytorch: a flat nn.Sequential, in which modules are called by their numbers.

The stem is a Linear over `(p1 p2 c)`, and the token MLP two Conv1d of kernel 1. Its
`expansion_factor` sizes the token MLP and `expansion_factor_token` the channel MLP, the reverse of
the paper's names; shapes tell. Source: mlp_mixer_pytorch/mlp_mixer_pytorch.py.
"""

from mixer_equiv.layouts.base import Conventions, Layout, table

LUCIDRAINS = Layout(
    name="lucidrains",
    summary="lucidrains/mlp-mixer-pytorch",
    framework="torch",
    computes=Conventions(activation="gelu", layer_norm_eps=1e-5),
    trained_with=Conventions(activation="gelu", layer_norm_eps=1e-5),
    advice={
        "activation": "replace nn.GELU() in FeedForward by {torch_activation}",
        "layer_norm_eps": "give its nn.LayerNorm, in PreNormResidual and at the end, eps={layer_norm_eps:g}",
    },
    rows=table("""
        stem/kernel                                   1.weight             ph pw channels hidden -> hidden (ph pw channels)
        stem/bias                                     1.bias               hidden
        MixerBlock_{i}/LayerNorm_0/scale              {i+2}.0.norm.weight  hidden
        MixerBlock_{i}/LayerNorm_0/bias               {i+2}.0.norm.bias    hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    {i+2}.0.fn.0.weight  tokens tokens_mlp -> tokens_mlp tokens 1
        MixerBlock_{i}/token_mixing/Dense_0/bias      {i+2}.0.fn.0.bias    tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    {i+2}.0.fn.3.weight  tokens_mlp tokens -> tokens tokens_mlp 1
        MixerBlock_{i}/token_mixing/Dense_1/bias      {i+2}.0.fn.3.bias    tokens
        MixerBlock_{i}/LayerNorm_1/scale              {i+2}.1.norm.weight  hidden
        MixerBlock_{i}/LayerNorm_1/bias               {i+2}.1.norm.bias    hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  {i+2}.1.fn.0.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    {i+2}.1.fn.0.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  {i+2}.1.fn.3.weight  channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    {i+2}.1.fn.3.bias    hidden
        pre_head_layer_norm/scale                     {L+2}.weight         hidden
        pre_head_layer_norm/bias                      {L+2}.bias           hidden
        head/kernel                                   {L+4}.weight         hidden classes -> classes hidden
        head/bias                                     {L+4}.bias           classes
    """),
)
