"""Functions and layers that `torch.jit.script` compiled, inside a model that is run by Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Gelu, Mixer
from tests.soundness.writings.torch_unfollowed import without_deprecation


def add(bias: Tensor, y: Tensor) -> Tensor:
    return bias + y


def with_scripted_bias() -> nn.Module:
    """The bias of a layer is an argument of a script."""
    with without_deprecation():
        scripted_add = torch.jit.script(add)

    def channels(y: Tensor, first: nn.Linear, second: nn.Linear, act: Gelu) -> Tensor:
        wide = act(scripted_add(first.bias, F.linear(y, first.weight)))
        return scripted_add(second.bias, F.linear(wide, second.weight))

    return Mixer(channels=channels)


def with_scripted_layers() -> nn.Module:
    """The layers of a block are a module that was compiled, with its parameters."""
    mixer = Mixer()
    for block in mixer.blocks:
        layers = nn.Sequential(block.channels_0, nn.GELU("tanh"), block.channels_1)
        block.channels_0 = block.channels_1 = nn.Identity()
        with without_deprecation():
            block.layers = torch.jit.script(layers)
        block.parts = block.parts | {"channels": lambda y, first, second, act, layers=block.layers: layers(y)}
    return mixer


SCRIPTS: dict[str, Callable[[], nn.Module]] = {
    "scripted addition of a bias": with_scripted_bias,
    "scripted layers": with_scripted_layers,
}
