"""The choice between torch's kernels on this processor: which work, and which are fast.

Inference on a CPU can multiply by oneDNN, with the activation inside the product, or by the plain product (the BLAS
that torch was built with) and an activation in place. oneDNN's operations need instructions that not every processor
has: those in bfloat16 need AVX-512 or avx_ne_convert. Nothing is assumed of a processor: an operation is tried once, on
a few numbers, before it is used. This must not know any model. Start reading at `preferred_kernels`, `agrees`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Kernels = Literal["onednn", "blas"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)

# The faster kernels in float32 by instruction set. For all others the BLAS, whose operations are torch's public ones.
# Measured on one Intel Xeon of 2023 (AMX), with all its instructions and with everything above AVX2 masked: speed
# relative to timm's MlpMixer with the same GELU, S/32, one thread, batches of 1 and 8.
#             oneDNN: eager        packed        BLAS: eager       packed
#   AVX512           1.09, 1.19    1.35, 1.31         1.10, 1.13   1.34, 1.25
#   AVX2             1.03, 0.98    1.17, 1.04         1.13, 1.15   1.37, 1.21
# On an AMD EPYC with AVX-512 oneDNN multiplied a sixth faster than the BLAS (not in the recorded tables).
PREFERRED: dict[str, Kernels] = {"AVX512": "onednn"}

# Instruction sets of x86 in ascending order, and oneDNN's names of the limits below AVX-512 that can be set on its use.
_X86_SETS = ("DEFAULT", "AVX2", "AVX512")
_LIMITS = {
    **dict.fromkeys(("SSE41", "AVX"), "DEFAULT"),
    **dict.fromkeys(("AVX2", "AVX2_VNNI", "AVX2_VNNI_2"), "AVX2"),
}

# Largest distance of a correct result from the exact one, relative to the norm of the exact one.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6}


def instruction_set() -> str:
    """The vector instructions that torch uses here: "AVX512", "AVX2", "SVE256", ..., or "DEFAULT" for none of them.

    If an environment variable limits oneDNN to fewer instructions, this is its limit.
    """
    found = torch.backends.cpu.get_cpu_capability()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit not in _LIMITS or found not in _X86_SETS:
        return found
    return min(found, _LIMITS[limit], key=_X86_SETS.index)


def preferred_kernels() -> Kernels:
    """The kernels that are faster in float32 with the instructions of this processor."""
    return PREFERRED.get(instruction_set(), "blas")


def agrees(attempt: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether `attempt` runs on this processor, with this torch, and gives the values of `expected` (float64)."""
    try:
        with torch.no_grad():
            found = attempt()
            distance = torch.linalg.norm(found.double() - expected) / torch.linalg.norm(expected)
            return found.shape == expected.shape and bool(distance <= _TOLERANCES[found.dtype])
    except Exception:  # torch has no error class for instructions or operations that are missing
        return False
