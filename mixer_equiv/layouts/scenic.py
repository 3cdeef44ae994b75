"""Scenic's MLP-Mixer in Flax: the official mathematics, other names, and a stem without padding.

Source: google-research/scenic, scenic/projects/baselines/mixer.py.
"""

from mixer_equiv.layouts.base import Conventions, Layout, table

SCENIC = Layout(
    name="scenic",
    summary="google-research/scenic",
    framework="flax",
    computes=Conventions(padding="valid"),
    trained_with=Conventions(padding="valid"),
    advice={
        "activation": "its code fixes nn.gelu: use mixer_equiv.models.flax with activation={activation!r}",
        "layer_norm_eps": "its code fixes it: use mixer_equiv.models.flax with layer_norm_eps={layer_norm_eps:g}",
    },
    rows=table("""
        stem/kernel                                   embedding/kernel                              ph pw channels hidden
        stem/bias                                     embedding/bias                                hidden
        MixerBlock_{i}/LayerNorm_0/scale              mixerblock_{i}/LayerNorm_0/scale              hidden
        MixerBlock_{i}/LayerNorm_0/bias               mixerblock_{i}/LayerNorm_0/bias               hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    mixerblock_{i}/token_mixing/Dense_0/kernel    tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_0/bias      mixerblock_{i}/token_mixing/Dense_0/bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    mixerblock_{i}/token_mixing/Dense_1/kernel    tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_1/bias      mixerblock_{i}/token_mixing/Dense_1/bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              mixerblock_{i}/LayerNorm_1/scale              hidden
        MixerBlock_{i}/LayerNorm_1/bias               mixerblock_{i}/LayerNorm_1/bias               hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  mixerblock_{i}/channel_mixing/Dense_0/kernel  hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_0/bias    mixerblock_{i}/channel_mixing/Dense_0/bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  mixerblock_{i}/channel_mixing/Dense_1/kernel  channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_1/bias    mixerblock_{i}/channel_mixing/Dense_1/bias    hidden
        pre_head_layer_norm/scale                     pre_logits_norm/scale                         hidden
        pre_head_layer_norm/bias                      pre_logits_norm/bias                          hidden
        head/kernel                                   output_projection/kernel                      hidden classes
        head/bias                                     output_projection/bias                        classes
    """),
)
