"""The environment of a run: processor, versions, threads, precision and load; and the memory that a call takes.

Knows no Mixer. Start reading at `Machine` and `pin_cores`.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from mixer_equiv.arrays.interop import require
from mixer_equiv.equivalence.record.precision import torch_threads
from mixer_equiv.errors import ConfigError

PACKAGES = ("numpy", "torch", "jax", "jaxlib", "flax", "einops")
_PROC = Path("/proc/self")

# The largest of several measurements counts: a system may miss the peak of a call, and never reports a higher one.
PEAK_MEASUREMENTS = 3

# Before each, the memory of the process is read until it has not fallen for so long, at most this long altogether.
SETTLED_SECONDS = 0.25
SETTLING_SECONDS = 5.0
SETTLING_PAUSE = 0.01


class Machine:
    """The machine, and its load from the beginning to the end of a `with`."""

    def __enter__(self) -> Machine:
        self._load, self._cpu, self._start = [_load()], os.times(), datetime.datetime.now(datetime.UTC)
        return self

    def __exit__(self, *_: object) -> None:
        self._load.append(_load())
        self._end, self._spent = datetime.datetime.now(datetime.UTC), os.times()

    def describe(self) -> dict[str, Any]:
        """Describe the machine, with names as they are in JSON.

        `cores_had` is the processor time of this process over the time that passed.
        """
        wall = (self._end - self._start).total_seconds()
        return {
            "date": f"{self._start:%Y-%m-%d}",
            "seconds": round(wall),
            "processor": processor_model(),
            "instruction_set": describe_instruction_set(),
            "cores": os.cpu_count(),
            **({"gpu": gpu} if (gpu := describe_gpu()) else {}),
            "load_before_and_after": self._load,
            "cores_had": round((sum(self._spent[:2]) - sum(self._cpu[:2])) / wall, 2),
            "python": platform.python_version(),
            **package_versions(PACKAGES),
        }


def _load() -> float | None:
    """Read the load average over a minute, None where the system does not tell it."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 1)
    return None


def package_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Look up the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processor_model() -> str:
    """Name the processor's model, where the system tells it, and its architecture."""
    return ", ".join(filter(None, (_cpuinfo("model name"), platform.machine())))


def _cpuinfo(field: str) -> str:
    """Read a field of Linux's description of the first processor; empty on other systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


# Instructions for half precision beside a processor's vectors, by torch's names.
HALF_PRECISION_INSTRUCTIONS = ("avx512_bf16", "avx512_fp16", "amx_bf16", "avx_ne_convert")
# Environment variables that keep a library from using instructions that the processor has.
INSTRUCTION_LIMITS = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    *("OPENBLAS_CORETYPE", "XLA_FLAGS"),
)


def describe_instruction_set() -> str:
    """Name the vector instructions that torch uses here, or else those the system tells of.

    Instructions for half precision follow, and environment variables that limit their use.
    """
    torch = sys.modules.get("torch")
    if torch:
        from mixer_equiv.models.torch.kernel_choice import instruction_set

        vectors = instruction_set()
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        half_precision = [name for name in HALF_PRECISION_INSTRUCTIONS if has.get(name)]
    else:
        flags = _cpuinfo("flags").split()
        known = {"avx512f": "AVX512", "avx2": "AVX2"}
        vectors = next((name for flag, name in known.items() if flag in flags), "DEFAULT")
        half_precision = [name for name in HALF_PRECISION_INSTRUCTIONS if name in flags]
    limits = [f"{name}={os.environ[name]}" for name in INSTRUCTION_LIMITS if os.environ.get(name)]
    extensions = f" with {', '.join(half_precision)}" if half_precision else ""
    return f"{vectors}{extensions}{' under ' if limits else ''}{' '.join(limits)}"


def describe_gpu() -> str:
    """Name the first GPU of the imported frameworks, with its memory and CUDA's version if torch is imported.

    The text is empty without a GPU.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
        return f"{torch.cuda.get_device_name(0)}, {size / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    kinds = [device.device_kind for device in jax.devices() if device.platform != "cpu"] if jax else []
    return kinds[0] if kinds else ""


@contextlib.contextmanager
def pin_cores(threads: int | None, frameworks: Collection[str]) -> Iterator[list[int]]:
    """Pin the frameworks to the same cores, one thread on each: `threads` of those allowed, by default all.

    JAX starts its threads when it is first used, one for each core then allowed; that is why it is used here.
    Yields the cores, none where the system does not let a process choose them. Raises `ConfigError` for more threads
    than cores.
    """
    before = _allowed_cores()
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


def _allowed_cores() -> set[int]:
    with contextlib.suppress(OSError, AttributeError):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _pin(cores: Collection[int]) -> bool:
    """Keep this process to these cores; return whether the system allowed it."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, cores)
        return True
    return False


def framework_settings(cores: list[int], frameworks: Collection[str]) -> dict[str, Any]:
    """Read the current threads, cores and precision switches of the frameworks, with names as they are in JSON."""
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
            "jax_threads": _count_threads("tf_XLAEigen") or None,
            "jax_x64": bool(jax.config.jax_enable_x64),
            "jax_matmul_precision": jax.config.jax_default_matmul_precision or "default",
        }
    return result


def _count_threads(prefix: str) -> int:
    """Count the threads of this process whose name begins with `prefix`, 0 where the system does not tell."""
    found = 0
    for path in _PROC.glob("task/*/comm"):
        with contextlib.suppress(OSError):
            found += path.read_text().startswith(prefix)
    return found


def extra_memory(call: Callable[[], Any], forget: Callable[[], Any] = lambda: None) -> int | None:
    """Measure by how many bytes the process grows at the peak of a call, None where the system cannot tell.

    `forget` is called before, to free memory that an earlier call left behind.
    """
    try:
        return max(_peak_growth(call, forget) for _ in range(PEAK_MEASUREMENTS))
    except (OSError, KeyError):
        return None


def _peak_growth(call: Callable[[], Any], forget: Callable[[], Any]) -> int:
    forget()
    before = _settled_memory()
    (_PROC / "clear_refs").write_text("5")  # resets the high-water mark
    call()
    return max(0, _status("VmHWM") - before)


def _settled_memory() -> int:
    """The bytes that the process has, once XLA's threads have freed what the last call took.

    That is some milliseconds after its end, on a busy machine a second.
    """
    least, began = _trimmed_memory(), time.perf_counter()
    fallen = began
    while (now := time.perf_counter()) < min(fallen + SETTLED_SECONDS, began + SETTLING_SECONDS):
        time.sleep(SETTLING_PAUSE)
        if (memory := _trimmed_memory()) < least:
            least, fallen = memory, now
    return least


def _trimmed_memory() -> int:
    """The bytes that the process has, without freed memory, which would not be counted when it is used again."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(field: str) -> int:
    """Read a size of this process in bytes."""
    lines = dict(line.split(":", 1) for line in (_PROC / "status").read_text().splitlines() if ":" in line)
    return 1024 * int(lines[field].split()[0])
