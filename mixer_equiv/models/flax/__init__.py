"""The Mixer in Flax linen. Start reading at `model.py`."""

from mixer_equiv.models.flax.model import MixerBlock, MlpBlock, MlpMixer

__all__ = ["MixerBlock", "MlpBlock", "MlpMixer"]
