"""The Mixer in PyTorch. Start reading at `model.py`."""

from mixer_equiv.models.torch.model import MixerBlock, MlpBlock, MlpMixer

__all__ = ["MixerBlock", "MlpBlock", "MlpMixer"]
