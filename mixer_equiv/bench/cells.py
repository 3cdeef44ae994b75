"""`Cell`: the sizes, dtype, batch, device and mode at which contestants are compared.

Knows no model. Start reading at `Cell`; `make_cells` combines axes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator

from mixer_equiv.config import MixerConfig
from mixer_equiv.errors import ConfigError, did_you_mean

# The dtype of the arrays in each dtype of a cell. In tf32, tensor cores multiply float32 numbers rounded to 10 bits.
STORAGE_DTYPES = {
    "float32": "float32",
    "tf32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float64": "float64",
}
CUDA_ONLY_DTYPES = ("tf32", "float16")
DEVICES = ("cpu", "cuda")

# For each mode, how many matrix products it takes for each product of a forward pass.
MODES = {"inference": 1, "training": 3}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the axes; the ratios of a table compare contestants within a cell.

    `dtype` is that of weights, images and activations alike, in every framework, or "tf32". In `mode` "inference"
    a call computes the logits of a batch; in "training" also the gradients and a step of SGD.
    """

    config: MixerConfig
    dtype: str = "float32"
    batch: int = 8
    device: str = "cpu"
    mode: str = "inference"

    def __post_init__(self) -> None:
        for field, known in (("dtype", STORAGE_DTYPES), ("device", DEVICES), ("mode", MODES)):
            if getattr(self, field) not in known:
                raise ConfigError(
                    f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(known)}"
                    f"{did_you_mean(str(getattr(self, field)), known)}"
                )
        if not self.config.num_classes:
            raise ConfigError("num_classes is 0; a timed Mixer has a head, as not every program can be without one")
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}; it must be at least 1")
        if self.dtype in CUDA_ONLY_DTYPES and self.device == "cpu":
            other = "float32" if self.dtype == "tf32" else "bfloat16"
            raise ConfigError(
                f"dtype is {self.dtype!r} on the CPU, which has no arithmetic for it; use cuda, or {other}"
            )

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of one call, two for each multiply-add.

        The gradients of a product are two more products. The stem has one only, as no gradient of the images is
        computed.
        """
        config = self.config
        stem = config.num_tokens * config.hidden_dim * math.prod(config.patch_hw) * config.in_channels
        products = MODES[self.mode] * config.macs - (stem if self.mode == "training" else 0)
        return 2 * products * self.batch

    @property
    def storage(self) -> str:
        """The dtype of the arrays."""
        return STORAGE_DTYPES[self.dtype]

    @property
    def variant(self) -> str:
        """The published name of the sizes, or a description of them."""
        config = self.config
        return config.name or f"custom ({config.num_blocks} x {config.num_tokens} x {config.hidden_dim})"

    def __str__(self) -> str:
        return f"{self.variant}, {self.dtype}, batch {self.batch}, {self.device}, {self.mode}"


def make_cells(
    configs: Iterable[MixerConfig], dtypes: Iterable[str], batches: Iterable[int], device: str, modes: Iterable[str]
) -> Iterator[Cell]:
    """Yield every combination. Raises `ConfigError` for an impossible one."""
    for config, dtype, mode, batch in itertools.product(configs, dtypes, modes, batches):
        yield Cell(config, dtype, batch, device, mode)
