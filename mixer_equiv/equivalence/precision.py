"""Full precision while comparing: float64 in JAX, no TF32 anywhere; what was set before comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mixer_equiv.arrays import require


@contextlib.contextmanager
def jax_full_precision() -> Iterator[None]:
    """x64 on, and matrix products in the precision of their operands."""
    jax = require("jax", "flax", "running the Flax model")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def torch_full_precision() -> Iterator[None]:
    """No TF32 in matrix products and convolutions, and no gradients."""
    import torch

    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        with torch.no_grad():
            yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
