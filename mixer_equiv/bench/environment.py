"""What was run on: processor, versions, threads and precision, how busy it was; and how much memory a call takes."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.equivalence.record.precision import torch_threads
from mixer_equiv.errors import ConfigError

PACKAGES = ("numpy", "torch", "jax", "jaxlib", "flax", "einops")
_PROC = Path("/proc/self")

# A system may miss the height of a call now and then, and never sees one that was not reached.
HEIGHTS = 3


class Machine:
    """The machine, and how busy it was from the beginning to the end of a `with`."""

    def __enter__(self) -> Machine:
        self._load, self._cpu, self._start = [_load()], os.times(), datetime.datetime.now(datetime.UTC)
        return self

    def __exit__(self, *_: object) -> None:
        self._load.append(_load())
        self._end, self._spent = datetime.datetime.now(datetime.UTC), os.times()

    def described(self) -> dict[str, Any]:
        """`cores_had` is the processor time of this process over the time that passed."""
        wall = (self._end - self._start).total_seconds()
        return {
            "date": f"{self._start:%Y-%m-%d}",
            "seconds": round(wall),
            "processor": processor(),
            "instruction_set": instruction_set(),
            "cores": os.cpu_count(),
            **({"gpu": gpu} if (gpu := graphics()) else {}),
            "load_before_and_after": self._load,
            "cores_had": round((sum(self._spent[:2]) - sum(self._cpu[:2])) / wall, 2),
            "python": platform.python_version(),
            **versions(PACKAGES),
        }


def _load() -> float | None:
    """The system's load average of a minute, None where it does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 1)
    return None


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processor() -> str:
    """The processor's model, where the system says it, and its architecture."""
    return ", ".join(filter(None, (_of_processor("model name"), platform.machine())))


def _of_processor(field: str) -> str:
    """What Linux says of the first processor, nothing where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


# What a processor may have beside its vectors, as torch calls it, and the environment that has less of it used.
EXTENSIONS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "avx_ne_convert")
LIMITS = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_CORETYPE", "XLA_FLAGS"),
)


def instruction_set() -> str:
    """The vector instructions that torch uses here, or that the system tells of; what else there is for half precision.

    Variables of the environment that limit their use are named.
    """
    torch = sys.modules.get("torch")
    if torch:
        from mixer_equiv.models.torch import processor as torch_processor

        vectors = torch_processor.instruction_set()
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        extensions = [name for name in EXTENSIONS if has.get(name)]
    else:
        flags = _of_processor("flags").split()
        known = {"avx512f": "AVX512", "avx2": "AVX2"}
        vectors = next((name for flag, name in known.items() if flag in flags), "DEFAULT")
        extensions = [name for name in EXTENSIONS if name in flags]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    said = f" with {', '.join(extensions)}" if extensions else ""
    return f"{vectors}{said}{' under ' if limits else ''}{' '.join(limits)}"


def graphics() -> str:
    """The first GPU that a framework in use has, its memory and CUDA's version where torch tells; empty for none."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
        return f"{torch.cuda.get_device_name(0)}, {size / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    kinds = [device.device_kind for device in jax.devices() if device.platform != "cpu"] if jax else []
    return kinds[0] if kinds else ""


@contextlib.contextmanager
def pinned(threads: int | None, frameworks: Collection[str]) -> Iterator[list[int]]:
    """The frameworks on the same cores, one thread on each: `threads` of those allowed, by default all.

    JAX makes its threads when it is first used, one for each core then allowed, so that it is used here.
    Yields the cores, none where the system does not let a process choose them. Raises `ConfigError` for more threads
    than cores.
    """
    before = _allowed()
    if threads is not None and threads > len(before):
        raise ConfigError(f"threads is {threads}; this process may use {len(before)} cores")
    threads = threads or len(before)
    cores = sorted(before)[-threads:]  # interrupts are mostly the first one's
    is_pinned = _pin(cores)
    if "torch" in frameworks:
        require("torch", "torch", "timing torch")
    if "jax" in frameworks:
        require("flax", "flax", "timing Flax")
        require("jax", "flax", "timing JAX").devices()
    try:
        with torch_threads(threads) if "torch" in frameworks else contextlib.nullcontext():
            yield cores if is_pinned else []
    finally:
        if is_pinned:
            _pin(before)


def _allowed() -> set[int]:
    """The cores that this process may use."""
    with contextlib.suppress(OSError, AttributeError):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _pin(cores: Collection[int]) -> bool:
    """Keep this process to these cores. Whether the system did so."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, cores)
        return True
    return False


def settings(cores: list[int], frameworks: Collection[str]) -> dict[str, Any]:
    """Threads, cores, and the frameworks' switches of precision, as they are."""
    result: dict[str, Any] = {"cores_pinned": cores}
    if "torch" in frameworks:
        torch = require("torch", "torch", "timing torch")
        result |= {
            "torch_threads": torch.get_num_threads(),
            "tf32": {
                "cuda.matmul": torch.backends.cuda.matmul.fp32_precision,
                "cudnn.conv": torch.backends.cudnn.conv.fp32_precision,
            },
        }
    if "jax" in frameworks:
        jax = require("jax", "flax", "timing JAX")
        result |= {
            "jax_threads": _threads_called("tf_XLAEigen") or None,
            "jax_x64": bool(jax.config.jax_enable_x64),
            "jax_matmul_precision": jax.config.jax_default_matmul_precision or "default",
        }
    return result


def _threads_called(name: str) -> int:
    """Threads of this process by the first of their name, where the system tells."""
    found = 0
    for path in _PROC.glob("task/*/comm"):
        with contextlib.suppress(OSError):
            found += path.read_text().startswith(name)
    return found


def extra_memory(call: Callable[[], Any], forget: Callable[[], Any] = lambda: None) -> int | None:
    """Bytes that the process is larger by at the height of a call than before it, None where the system cannot tell.

    `forget` is called before, to let go of what an earlier call left.
    """
    try:
        return max(_height(call, forget) for _ in range(HEIGHTS))
    except (OSError, KeyError):
        return None


def _height(call: Callable[[], Any], forget: Callable[[], Any]) -> int:
    forget()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before is given back, so that it counts when it is used
    (_PROC / "clear_refs").write_text("5")  # the high-water mark begins anew
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    """Bytes that the system says this process has."""
    lines = dict(line.split(":", 1) for line in (_PROC / "status").read_text().splitlines() if ":" in line)
    return 1024 * int(lines[field].split()[0])
