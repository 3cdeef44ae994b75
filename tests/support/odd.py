"""A torch model that does something odd around the official function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.support.sizes import SMALL
from tests.support.structures import PortMixer

CONFIG = SMALL
IMAGE = CONFIG.in_channels, *CONFIG.image_hw
Forward = Callable[[Tensor], Any]


class Odd(PortMixer):
    """The official function, of which `doing` makes something else."""

    def __init__(self, doing: Callable[[Forward, Tensor], Any]) -> None:
        super().__init__(CONFIG)
        self.doing = doing

    def forward(self, images: Tensor) -> Any:
        return self.doing(super().forward, images)
