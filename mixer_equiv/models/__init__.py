"""The official MLP-Mixer four times: `flax` (linen), `nnx`, `torch`, and `numpy`, the reference in float64.

Each module has an `MlpMixer(config)`; that of `nnx` also takes `rngs`. Called with `taps=True`, a model returns
every stage of the residual stream instead of the logits alone: a dict in the order of computation, which
`jax.jit` sorts by name:

    stem                            (batch, tokens, hidden)
    MixerBlock_{i}/token_mixing     (batch, tokens, hidden)   the stream after that branch was added
    MixerBlock_{i}/channel_mixing   (batch, tokens, hidden)
    pre_head_layer_norm             (batch, tokens, hidden)
    pooled                          (batch, hidden)
    logits                          (batch, classes)          absent with num_classes=0
"""
