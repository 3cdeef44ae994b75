"""`versions`: the versions of this package and of the frameworks in use, for what is written down about a run."""

from __future__ import annotations

import functools
import importlib.metadata
import sys

# Packages whose code takes part in a comparison, where they are imported.
FRAMEWORKS = ("numpy", "torch", "timm", "jax", "jaxlib", "flax", "optax")


def versions() -> dict[str, str]:
    """The versions of this package and of the frameworks that are imported."""
    own = sys.modules[__name__.partition(".")[0]]
    imported = [name for name in FRAMEWORKS if name in sys.modules]
    return {"mixer_equiv": own.__version__, **{name: _version(name) for name in imported}}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # such as a clone that is imported and was never installed
        return str(getattr(sys.modules[package], "__version__", "unknown"))
