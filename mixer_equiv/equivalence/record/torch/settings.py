"""`setting_of` and `object_of`: the objects of torch that calls take, as plain data and back."""

from __future__ import annotations

from typing import Any

import torch

from mixer_equiv.equivalence.record.graph import Setting
from mixer_equiv.equivalence.record.precision import device

# The types of arguments that are settings.
SETTINGS = (torch.dtype, torch.device, torch.memory_format, torch.layout)


def setting_of(value: Any) -> Setting:
    """A dtype, memory format or layout of torch by its name; every device is the one that is computed on."""
    if isinstance(value, torch.device):
        return Setting("device", "")
    return Setting(type(value).__name__, str(value).removeprefix("torch."))


def object_of(setting: Setting) -> Any:
    """The object of torch that a setting names, dtypes of JAX among them."""
    if setting.kind == "device":
        return torch.device(device())
    return getattr(torch, setting.name)
