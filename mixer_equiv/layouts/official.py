"""The official Flax linen tree: the published npz files, vision_transformer and big_vision.

Its names and axes are the canonical ones, so every pattern stands alone. Source:
google-research/vision_transformer, vit_jax/models_mixer.py, and the files under gs://mixer_models.
"""

from mixer_equiv.layouts.base import OFFICIAL_CONVENTIONS, Layout, table

# The official Flax linen tree, whose names and axes are the canonical ones.
LINEN = Layout(
    name="linen",
    aliases=("flax", "official", "big_vision"),
    summary="official Flax linen model, published npz, big_vision",
    framework="flax",
    computes=OFFICIAL_CONVENTIONS,
    trained_with=OFFICIAL_CONVENTIONS,
    advice={
        "activation": "the official code fixes nn.gelu: use mixer_equiv.models.flax with activation={activation!r}",
        "layer_norm_eps": "the official code fixes it: use mixer_equiv.models.flax with layer_norm_eps={layer_norm_eps:g}",
    },
    rows=table("""
        stem/kernel                                   stem/kernel                                   ph pw channels hidden
        stem/bias                                     stem/bias                                     hidden
        MixerBlock_{i}/LayerNorm_0/scale              MixerBlock_{i}/LayerNorm_0/scale              hidden
        MixerBlock_{i}/LayerNorm_0/bias               MixerBlock_{i}/LayerNorm_0/bias               hidden
        MixerBlock_{i}/token_mixing/Dense_0/kernel    MixerBlock_{i}/token_mixing/Dense_0/kernel    tokens tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_0/bias      MixerBlock_{i}/token_mixing/Dense_0/bias      tokens_mlp
        MixerBlock_{i}/token_mixing/Dense_1/kernel    MixerBlock_{i}/token_mixing/Dense_1/kernel    tokens_mlp tokens
        MixerBlock_{i}/token_mixing/Dense_1/bias      MixerBlock_{i}/token_mixing/Dense_1/bias      tokens
        MixerBlock_{i}/LayerNorm_1/scale              MixerBlock_{i}/LayerNorm_1/scale              hidden
        MixerBlock_{i}/LayerNorm_1/bias               MixerBlock_{i}/LayerNorm_1/bias               hidden
        MixerBlock_{i}/channel_mixing/Dense_0/kernel  MixerBlock_{i}/channel_mixing/Dense_0/kernel  hidden channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_0/bias    MixerBlock_{i}/channel_mixing/Dense_0/bias    channels_mlp
        MixerBlock_{i}/channel_mixing/Dense_1/kernel  MixerBlock_{i}/channel_mixing/Dense_1/kernel  channels_mlp hidden
        MixerBlock_{i}/channel_mixing/Dense_1/bias    MixerBlock_{i}/channel_mixing/Dense_1/bias    hidden
        pre_head_layer_norm/scale                     pre_head_layer_norm/scale                     hidden
        pre_head_layer_norm/bias                      pre_head_layer_norm/bias                      hidden
        head/kernel                                   head/kernel                                   hidden classes
        head/bias                                     head/bias                                     classes
    """),
)
