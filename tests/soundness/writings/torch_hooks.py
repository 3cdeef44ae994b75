"""Hooks that look or keep, and hand on what they were given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.soundness.writings.torch_plain import Mixer


def hooked_to_look() -> nn.Module:
    """Hooks on every module that only look."""
    model = Mixer()
    shapes: list[torch.Size] = []
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
        module.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    return model


def hooked_to_keep() -> nn.Module:
    """A feature extractor: hooks keep the outputs of blocks in a dict."""
    model = Mixer()
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: kept.__setitem__(name, output)

    for name, module in model.named_modules():
        if name.startswith("blocks."):
            module.register_forward_hook(keep(name))
    return model


def hooked_backward() -> nn.Module:
    """Hooks on gradients that return nothing."""
    model = Mixer()
    norms: list[Tensor] = []
    for block in model.blocks:
        block.register_full_backward_hook(lambda module, given, taken: norms.append(taken[0].norm()))
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: norms.append(gradient.norm()))
    return model


def hooked_to_return() -> nn.Module:
    """A hook that returns the output it was given."""
    model = Mixer()
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: output)
    return model


HOOKS: dict[str, Callable[[], nn.Module]] = {
    "hooks that look": hooked_to_look,
    "hooks that keep": hooked_to_keep,
    "hooks on gradients": hooked_backward,
    "hooks that return the output": hooked_to_return,
}
