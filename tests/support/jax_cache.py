"""Where the tests keep what JAX compiles, and for how long.

The workers of one run share the folder, and it stays for the next run. Only compiled code is in it: JAX finds an entry
by the whole program, the compiler's options and version, and the instructions that the processor has.
"""

from __future__ import annotations

import shutil
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".jax_cache"
MAX_BYTES = 2**30

# JAX reads these when it is imported, here and in the processes that tests start.
ENVIRONMENT = {
    "JAX_COMPILATION_CACHE_DIR": str(FOLDER),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def limit_size(folder: Path = FOLDER, max_bytes: int = MAX_BYTES) -> None:
    """Remove the folder where it has grown too large: drawn sizes leave programs that no later run needs."""
    if folder.is_dir() and sum(file.stat().st_size for file in folder.iterdir()) > max_bytes:
        shutil.rmtree(folder)
