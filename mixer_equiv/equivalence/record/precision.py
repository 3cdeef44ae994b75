"""The device and the precision of a comparison: float64 in JAX, no TF32 anywhere.

All settings are context managers that restore what they found. Nothing here runs a model.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.errors import ConfigError, did_you_mean

# torch's precision switches belong to the process, so that only one thread may set them at a time.
_TORCH_SWITCHES = threading.RLock()

_DEVICE: ContextVar[str] = ContextVar("device", default="cpu")


@contextlib.contextmanager
def on_device(name: str) -> Iterator[None]:
    """Inside, torch computes on this device, and JAX too if it has one of the kind, else on the CPU.

    Raises `ConfigError` for a device that torch does not have, or that has no float64.
    """
    if name != "cpu":
        torch = require("torch", "torch", f"device {name!r}")
        try:
            torch.ones(1, dtype=torch.float64, device=name).item()
        except Exception as error:
            raise ConfigError(
                f"device is {name!r}, where torch cannot compute in float64: {error}"
                f"{did_you_mean(name, ('cpu', 'cuda'))}"
            ) from error
    token = _DEVICE.set(name)
    torch = sys.modules.get("torch")
    try:
        # In inference mode nothing can be differentiated, and tensors made in it cannot be either.
        with torch.inference_mode(False) if torch else contextlib.nullcontext():
            yield
    finally:
        _DEVICE.reset(token)


def device() -> str:
    """The device of torch on which models are compared."""
    return _DEVICE.get()


def jax_device() -> Any:
    """JAX's device for the comparison: one of the same kind as torch's, else the CPU."""
    import jax

    kind = {"cuda": "gpu"}.get(_DEVICE.get().partition(":")[0], "cpu")
    try:
        return jax.devices(kind)[0]
    except RuntimeError:
        return jax.devices("cpu")[0]


@contextlib.contextmanager
def jax_full_precision(*, x64: bool = True) -> Iterator[None]:
    """Turn x64 on or off, compute matrix products in their operands' precision; no strict promotion, no NaN traps."""
    jax = require("jax", "flax", "running the Flax model")
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(x64))
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.debug_nans(False))
        stack.enter_context(jax.default_device(jax_device()))
        yield


@contextlib.contextmanager
def torch_full_precision() -> Iterator[None]:
    """Turn TF32, autocast and gradients off, and make new tensors on the comparison's device."""
    import torch

    kind = torch.device(device()).type
    with no_tf32(), torch.no_grad(), torch.autocast(kind, enabled=False), torch.device(device()):
        yield


@contextlib.contextmanager
def no_tf32(tf32_on_cuda: bool = False) -> Iterator[None]:
    """Compute torch's matrix products and convolutions in the precision of their operands, or in TF32 on CUDA alone."""
    import torch

    backends: Any = torch.backends
    on_cuda = (backends.cuda.matmul, backends.cudnn.conv)
    switches = (*on_cuda, backends.mkldnn.matmul, backends.mkldnn.conv)
    with _TORCH_SWITCHES:
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "tf32" if tf32_on_cuda and switch in on_cuda else "ieee"
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use `count` threads for torch's operations: on small arrays, several only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
