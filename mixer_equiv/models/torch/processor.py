"""Which of torch's kernels work on this processor, and which of them are fast on it.

Inference on a CPU can multiply by oneDNN, with the activation inside the product, or by the plain product (the BLAS
that torch was built with) and an activation in place. oneDNN's operations need instructions that not every processor
has: those in bfloat16 need AVX-512 or avx_ne_convert. Nothing is assumed of a processor: an operation is tried once, on
a few numbers, before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Kernels = Literal["onednn", "blas"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

# Kernels in float32 by instruction set. Where none is named, the BLAS: its operations are torch's public ones.
# Measured on one Intel Xeon of 2023 (AMX), as it is and with everything above AVX2 masked: speed relative to timm's
# MlpMixer with the same GELU, S/32, one thread, batches of 1 and 8.
#             oneDNN: eager        packed        BLAS: eager       packed
#   AVX512           1.09, 1.19    1.35, 1.31         1.10, 1.13   1.34, 1.25
#   AVX2             1.03, 0.98    1.17, 1.04         1.13, 1.15   1.37, 1.21
# On an AMD EPYC with AVX-512 oneDNN multiplies a sixth faster than the BLAS (benchmarks/results/limits.md).
PREFERRED: dict[str, Kernels] = {"AVX512": "onednn"}

# Instruction sets of x86 from the least on, and what oneDNN calls less than AVX-512, to which its use can be limited.
_OF_X86 = ("DEFAULT", "AVX2", "AVX512")
_LIMITS = {
    **dict.fromkeys(("SSE41", "AVX"), "DEFAULT"),
    **dict.fromkeys(("AVX2", "AVX2_VNNI", "AVX2_VNNI_2"), "AVX2"),
}

# How far the result of an operation that works may be from the right one, relative to its norm.
_CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


def instruction_set() -> str:
    """The vector instructions that torch uses here: "AVX512", "AVX2", "SVE256", ..., or "DEFAULT" for none of them.

    Those of oneDNN where its environment variable limits it to less.
    """
    found = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit not in _LIMITS or found not in _OF_X86:
        return found
    return min(found, _LIMITS[limit], key=_OF_X86.index)


def preferred_kernels() -> Kernels:
    """The kernels that are fast in float32 with these instructions."""
    return PREFERRED.get(instruction_set(), "blas")


def agrees(attempt: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether `attempt` runs on this processor, with this torch, and gives the values of `expected` (float64)."""
    try:
        with torch.no_grad():
            found = attempt()
            apart = torch.linalg.norm(found.double() - expected) / torch.linalg.norm(expected)
            return found.shape == expected.shape and bool(apart <= _CLOSE[found.dtype])
    except Exception:  # torch has no class of its own for what a processor or a version does not have
        return False
