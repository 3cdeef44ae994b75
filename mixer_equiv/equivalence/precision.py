"""Full precision while comparing: float64 in JAX, no TF32 anywhere; what was set before comes back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from mixer_equiv.arrays import require

# torch's precision switches belong to the process, so that only one thread may turn them at a time.
_TORCH_SWITCHES = threading.RLock()


@contextlib.contextmanager
def jax_full_precision() -> Iterator[None]:
    """x64 on, and matrix products in the precision of their operands; no strict promotion or NaN traps."""
    jax = require("jax", "flax", "running the Flax model")
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.debug_nans(False))
        yield


@contextlib.contextmanager
def torch_full_precision() -> Iterator[None]:
    """No TF32 in matrix products and convolutions, no autocast, and no gradients."""
    import torch

    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    with _TORCH_SWITCHES:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value
