"""timm's `MlpMixer`. Source: huggingface/pytorch-image-models, timm/models/mlp_mixer.py.

Its code computes the erf GELU, but the weights that it publishes are of several origins: Google's were trained with
the tanh form, MIIL's with erf. The names of arrays do not tell which, but the name of the file may.
"""

from mixer_equiv.layouts.base import OFFICIAL_CONVENTIONS, Conventions, Layout, table

TIMM = Layout(
    name="timm",
    summary="timm's MlpMixer, pytorch-image-models",
    framework="torch",
    computes=Conventions(activation="gelu"),
    trained_with=None,
    provenance={
        "*mixer_*.goog_*": OFFICIAL_CONVENTIONS,
        "jx_mixer_*": OFFICIAL_CONVENTIONS,
        "*mixer_*.miil_*": Conventions(activation="gelu"),
        "mixer_*_miil*": Conventions(activation="gelu"),
    },
    advice={
        "activation": "pass act_layer={torch_activation_layer}",
        "layer_norm_eps": "pass norm_layer=partial(nn.LayerNorm, eps={layer_norm_eps:g})",
    },
    rows=table("""
        stem/kernel                                   stem.proj.weight                    ph pw channels hidden -> hidden channels ph pw
        stem/bias                                     stem.proj.bias                      hidden
        MixerBlock_{i}/LayerNorm_0/scale              blocks.{i}.norm1.weight             hidden
        MixerBlock_{i}/LayerNorm_0/bias               blocks.{i}.norm1.bias               hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    blocks.{i}.mlp_tokens.fc1.weight    tokens tokens_mlp -> tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_0/bias      blocks.{i}.mlp_tokens.fc1.bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    blocks.{i}.mlp_tokens.fc2.weight    tokens_mlp tokens -> tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/bias      blocks.{i}.mlp_tokens.fc2.bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              blocks.{i}.norm2.weight             hidden
        MixerBlock_{i}/LayerNorm_1/bias               blocks.{i}.norm2.bias               hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  blocks.{i}.mlp_channels.fc1.weight  hidden channels_mlp -> channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_0/bias    blocks.{i}.mlp_channels.fc1.bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  blocks.{i}.mlp_channels.fc2.weight  channels_mlp hidden -> hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/bias    blocks.{i}.mlp_channels.fc2.bias    hidden
        pre_head_layer_norm/scale                     norm.weight                         hidden
        pre_head_layer_norm/bias                      norm.bias                           hidden
        head/kernel                                   head.weight                         hidden classes -> classes hidden
        head/bias                                     head.bias                           classes
    """),
)
