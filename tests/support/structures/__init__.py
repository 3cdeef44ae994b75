"""Other people's Mixers, for the tests.

Each is rebuilt from the published names and shapes and from the paper, with its own conventions, and
shares no code with `mixer_equiv.models`; only timm is the real one. Those that are timed beside ours
live in `mixer_equiv.bench`. Every model is made from a
`MixerConfig`: for torch `Model(config)`, and `as_official(Model(config))` with the official
conventions set; for Flax by its `run_...`, which takes the weights under the model's own names.
`STRUCTURES` in `by_layout` has those of torch by the names of their layouts.
"""

from mixer_equiv.bench.peers_flax import MixerBlock, OfficialMixer, OfficialMlp, official_mixer
from mixer_equiv.bench.peers_torch import LucidrainsMixer, TutorialMixer, as_official, timm_mixer
from tests.support.structures.by_layout import STRUCTURES
from tests.support.structures.in_flax import (
    ScenicMixer,
    pre_linen_arrays,
    run_official,
    run_scenic,
)
from tests.support.structures.in_torch import JeonsworldMixer, MmpretrainMixer, run_torch
from tests.support.structures.own import FAULTS, OwnMixer
from tests.support.structures.ports import PORTS, PortMixer
from tests.support.structures.strange import STRANGE

__all__ = [
    "FAULTS",
    "PORTS",
    "STRANGE",
    "STRUCTURES",
    "JeonsworldMixer",
    "LucidrainsMixer",
    "MixerBlock",
    "MmpretrainMixer",
    "OfficialMixer",
    "OfficialMlp",
    "OwnMixer",
    "PortMixer",
    "ScenicMixer",
    "TutorialMixer",
    "as_official",
    "official_mixer",
    "pre_linen_arrays",
    "run_official",
    "run_scenic",
    "run_torch",
    "timm_mixer",
]
