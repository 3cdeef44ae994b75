"""The structure behind each torch layout: what a new layout adds a line to, here and in `tests/support/kernels.py`.

`tests/layouts/test_structures.py` holds that each layout is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mixer_equiv.bench.peers_torch import LucidrainsMixer, TutorialMixer, timm_mixer
from mixer_equiv.config import MixerConfig
from mixer_equiv.models.torch import MlpMixer
from tests.support.structures.in_torch import JeonsworldMixer, MmpretrainMixer

# Each computes by itself what `computes` of its layout says.
STRUCTURES: Mapping[str, Callable[[MixerConfig], nn.Module]] = {
    "torch": MlpMixer,
    "timm": timm_mixer,
    "jankrepl": TutorialMixer,
    "lucidrains": LucidrainsMixer,
    "jeonsworld": JeonsworldMixer,
    "mmpretrain": MmpretrainMixer,
}
