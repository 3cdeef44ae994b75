"""What is wrapped around a module, or made of it: compilers, exporters, averages, parametrizations."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tests.soundness.cases import CONFIG
from tests.soundness.writings.torch_plain import Mixer


class Lambda(nn.Module):
    """A module of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def compiled(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module, backend="eager"))


class CompiledBlocks(Mixer):
    """Each block is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([compiled(block) for block in self.blocks])


def patched() -> nn.Module:
    """The module's forward was replaced on the instance."""
    model = Mixer()

    def forward(self: Mixer, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)

    model.__dict__["forward"] = types.MethodType(forward, model)
    return model


def traced_by_fx() -> nn.Module:
    """A `GraphModule` of `torch.fx`."""
    return torch.fx.symbolic_trace(Mixer(embed=lambda x, stem: stem(x).flatten(2).transpose(1, 2)))


def exported() -> nn.Module:
    """The module of `torch.export`, for any size of batch."""
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.zeros(2, CONFIG.in_channels, *CONFIG.image_hw)
    return torch.export.export(Mixer(), (images,), dynamic_shapes=({0: batch},)).module()


def averaged() -> nn.Module:
    return AveragedModel(Mixer())


def parallel() -> nn.Module:
    return nn.DataParallel(Mixer())


def wrapped() -> nn.Module:
    """In three wrappers."""
    return nn.Sequential(nn.Identity(), nn.Sequential(nn.Sequential(Mixer())))


def reparametrized() -> nn.Module:
    """Every kernel passes through a parametrization that leaves it as it is."""
    model = Mixer()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    return model


def transposed_parametrization() -> nn.Module:
    """Every kernel is stored transposed behind a parametrization."""
    model = Mixer()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().T.contiguous()
            module.weight = nn.Parameter(weight)
            nn.utils.parametrize.register_parametrization(module, "weight", Lambda(torch.t), unsafe=True)
    return model


WRAPPERS: dict[str, Callable[[], nn.Module]] = {
    "forward replaced on the instance": patched,
    "torch.fx": traced_by_fx,
    "torch.export": exported,
    "AveragedModel": averaged,
    "DataParallel": parallel,
    "three wrappers": wrapped,
    "identity parametrization": reparametrized,
    "transposing parametrization": transposed_parametrization,
    "deep copy": lambda: copy.deepcopy(Mixer()),
    "torch.compile": lambda: compiled(Mixer()),
    "compiled blocks": CompiledBlocks,
}
