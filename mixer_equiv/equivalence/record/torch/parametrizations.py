"""Weights that a torch module computes from others, as by weight_norm, treated as parameters where they can be any."""

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

# How far, relatively, a weight may be from the one that was assigned, and still count as that one.
ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class ComputedWeight:
    """A weight of a submodule that `torch.nn.utils.parametrize` computes.

    Attributes:
        module: The submodule.
        tensor: The weight's name in it.
        originals: The names, in the whole module, of the parameters from which it is computed.
        value: The tensor that stands for it in a recorded pass.
    """

    module: nn.Module
    tensor: str
    originals: tuple[str, ...]
    value: Tensor

    def assign(self, array: Tensor) -> None:
        """Set the parameters from which it is computed, so that it is `array` but for rounding."""
        with torch.no_grad():
            setattr(self.module, self.tensor, array.reshape(self.value.shape).to(self.value))


def find_computed_weights(module: nn.Module) -> dict[str, ComputedWeight]:
    """Find the computed weights that take any values, by their names, such as "fc.weight"."""
    found = {}
    for prefix, submodule in module.named_modules():
        if is_parametrized(submodule):
            for tensor, held in submodule.parametrizations.items():
                name = f"{prefix}.{tensor}" if prefix else tensor
                within = f"{prefix}.parametrizations.{tensor}." if prefix else f"parametrizations.{tensor}."
                originals = tuple(within + inner for inner, _ in held.named_parameters())
                value = getattr(submodule, tensor).detach()
                if _takes_any_value(submodule, tensor, value):
                    found[name] = ComputedWeight(submodule, tensor, originals, value)
    return found


def _takes_any_value(module: nn.Module, tensor: str, value: Tensor) -> bool:
    """Whether it becomes the array assigned to it: with weight_norm, and not where it is kept symmetric, for one."""
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
    """Inside, each weight is its `value`, and is not computed."""
    lists: list[tuple[ComputedWeight, Any]] = [(w, w.module.parametrizations[w.tensor]) for w in weights]  # type: ignore[index]
    for weight, held in lists:
        held.forward = _constant(weight.value)
    try:
        yield
    finally:
        for _, held in lists:
            del held.forward


def _constant(value: Tensor) -> object:
    return lambda: value
