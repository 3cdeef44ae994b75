"""Weights that a torch module computes from others, as by weight_norm, taken for parameters where they may be any."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# How far, relatively, a weight may be from what was asked for and still count as that.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class ComputedWeight:
    """A weight of a submodule that `torch.nn.utils.parametrize` computes: its name there, and what it is computed from.

    `value` stands for it in a recorded pass.
    """

    module: nn.Module
    tensor: str
    originals: tuple[str, ...]
    value: Tensor

    def assign(self, array: Tensor) -> None:
        """Set what it is computed from, so that it is `array` but for rounding."""
        with torch.no_grad():
            setattr(self.module, self.tensor, array.reshape(self.value.shape).to(self.value))


def find_computed_weights(module: nn.Module) -> dict[str, ComputedWeight]:
    """By their names, such as "fc.weight": those that are whatever they are set to, so that any weights fit."""
    found = {}
    for prefix, submodule in module.named_modules():
        if is_parametrized(submodule):
            for tensor, held in submodule.parametrizations.items():
                name = f"{prefix}.{tensor}" if prefix else tensor
                within = f"{prefix}.parametrizations.{tensor}." if prefix else f"parametrizations.{tensor}."
                originals = tuple(within + inner for inner, _ in held.named_parameters())
                value = getattr(submodule, tensor).detach()
                if _may_be_any(submodule, tensor, value):
                    found[name] = ComputedWeight(submodule, tensor, originals, value)
    return found


def _may_be_any(module: nn.Module, tensor: str, value: Tensor) -> bool:
    """Whether it becomes what it is set to: with weight_norm, and not where it is kept symmetric or orthogonal."""
    if value.device.type == "meta":
        return False
    trial = copy.deepcopy(module).double()
    wanted = torch.from_numpy(np.random.default_rng(0).standard_normal(value.shape)).to(value.device)
    try:
        with torch.no_grad():
            setattr(trial, tensor, wanted)
            made = getattr(trial, tensor)
    except Exception:  # of a parametrization that has no inverse
        return False
    return bool(made.shape == wanted.shape and (made - wanted).norm() <= ROUNDING * wanted.norm())


@contextlib.contextmanager
def treat_as_parameters(weights: Collection[ComputedWeight]) -> Iterator[None]:
    """Inside, each is its `value`, and is not computed."""
    lists: list[tuple[ComputedWeight, Any]] = [(w, w.module.parametrizations[w.tensor]) for w in weights]  # type: ignore[index]
    for weight, held in lists:
        held.forward = _giving(weight.value)
    try:
        yield
    finally:
        for _, held in lists:
            del held.forward


def _giving(value: Tensor) -> object:
    return lambda: value
