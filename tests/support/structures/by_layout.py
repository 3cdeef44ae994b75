"""The structure behind each torch layout, and how its kernels lie there: what a new layout adds a line to.

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

# Layouts, of any framework, whose stem is a dense layer over flattened patches: the order of axes in a column. Their
# shapes show no more of a patch than the length of a column.
STEM_COLUMNS: Mapping[str, tuple[str, ...]] = {"lucidrains": ("ph", "pw", "channels")}

# Layouts whose token mixing is two Conv1d of kernel 1.
TOKENS_BY_CONV1D = frozenset({"lucidrains"})
