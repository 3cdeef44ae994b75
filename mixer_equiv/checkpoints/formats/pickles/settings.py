"""Settings of modules that were pickled whole: which activation they compute, and the eps of their LayerNorms.

Start at `Settings`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mixer_equiv.checkpoints.formats.pickles.machine import Placeholder

# Where libraries keep classes of activations and of LayerNorm.
_ACTIVATION = re.compile(
    r"(?:torch\.nn\.modules\.activation|timm\.(?:models\.)?layers\.activations(?:_\w+)?|transformers\.activations)\.(\w+)"
)
_LAYER_NORM = re.compile(r"(?:torch\.nn\.modules\.normalization|timm\.(?:models\.)?layers\.norm)\.LayerNorm")

# Activations by their classes. torch's GELU tells in its attribute `approximate` which one it is.
ACTIVATIONS: Mapping[str, str] = {
    **{"GELU": "gelu", "GELUActivation": "gelu"},
    **{"GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh"},
    **{"QuickGELU": "quick_gelu", "QuickGELUActivation": "quick_gelu"},
    **{"ReLU": "relu", "SiLU": "silu", "Swish": "silu"},
}

# Of the same modules of those libraries, but no activation between two layers.
_OTHERS = ("Sigmoid", "Softmax", "LogSoftmax", "MultiheadAttention")


@dataclasses.dataclass
class Settings:
    """The values of each setting in the modules that were seen."""

    activation: set[str] = dataclasses.field(default_factory=set)
    layer_norm_eps: set[float] = dataclasses.field(default_factory=set)

    def add(self, module: Placeholder) -> None:
        """Take note of what a module computes."""
        if match := _ACTIVATION.fullmatch(module.name):
            if match[1] not in _OTHERS:
                self.activation.add(_activation(match[1], module.state))
        elif _LAYER_NORM.fullmatch(module.name) and isinstance(eps := module.state.get("eps"), float):
            self.layer_norm_eps.add(eps)

    @property
    def agreed(self) -> dict[str, Any]:
        """The settings of which all modules have one value."""
        return {name: next(iter(values)) for name, values in vars(self).items() if len(values) == 1}

    @property
    def notes(self) -> list[str]:
        """A note on each setting of which the modules have several values."""
        several = {name: sorted(map(str, values)) for name, values in vars(self).items() if len(values) > 1}
        return [f"its modules differ in {name}: {', '.join(values)}" for name, values in several.items()]


def _activation(of_class: str, state: Mapping[str, Any]) -> str:
    if of_class == "GELU" and state.get("approximate", "none") != "none":
        return f"gelu_{state['approximate']}"
    return ACTIVATIONS.get(of_class, of_class)
