"""Run the tests that depend on the processor or the system with less than this one has: `make test-plain`.

torch and oneDNN use fewer instructions than there are; one core; no zlib-ng; no bytecode is written; the locale is C;
SIGHUP is ignored, as under nohup. At the lowest level only the models' own tests run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

MODELS = ("tests/models/torch",)
ALL = (*MODELS, "tests/bench", "tests/benchmarks", "tests/checkpoints/test_streaming.py", "tests/cli")

# By the instructions that torch's own kernels may use: those that oneDNN may use, and the tests to run.
LEVELS = {"avx2": ("AVX2", ALL), "default": ("SSE41", MODELS)}

ENVIRONMENT = {"LANG": "C", "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def run(level: str) -> int:
    """Run the tests of this level, and return the exit status of pytest."""
    limit, files = LEVELS[level]
    hidden = str(Path(__file__).parent / "hidden")
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "ATEN_CPU_CAPABILITY": level,
        "ONEDNN_MAX_CPU_ISA": limit,
        "PYTHONPATH": os.pathsep.join(filter(None, (hidden, os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return max(run(level) for level in LEVELS)


if __name__ == "__main__":
    sys.exit(main())
