"""Hypothesis profiles, versions in the header, and what several test files share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are the threads
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from tests.support import jax_cache

os.environ.update({**jax_cache.ENVIRONMENT, **os.environ})

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
_FAILURES = DirectoryBasedExampleDatabase(Path(__file__).parent / ".hypothesis" / "examples")
settings.register_profile("dev", max_examples=20, **_COMMON)
settings.register_profile("ci", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("fuzz", max_examples=500, database=_FAILURES, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev")
settings.load_profile(PROFILE)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        jax_cache.limit_size()


def pytest_report_header() -> str:
    names = "numpy", "torch", "jax", "flax", "optax", "timm", "transformers", "hypothesis"
    versions = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the base install has no framework
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return f"{', '.join(versions)}; Hypothesis profile {PROFILE}, {settings().max_examples} examples"


@pytest.fixture(scope="module")
def full_precision() -> Iterator[None]:
    """While the tests of a module run: x64 on in JAX, no TF32, matrix products in the precision of their operands.

    torch uses one thread.
    """
    import torch

    from mixer_equiv.equivalence.record.precision import jax_full_precision, torch_full_precision, torch_threads

    with torch_threads(1), jax_full_precision(), torch_full_precision(), torch.enable_grad():
        yield


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """While a test runs, JAX compiles everything itself: for tests of what compilation gives."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked `soundness` or `fuzz`, and without a device those marked `cuda`, unless `-m` chooses."""
    if not config.getoption("markexpr"):
        left_out = {"soundness", "fuzz"} | (set() if _has_cuda(items) else {"cuda"})
        # Not by `item.keywords`, among which are the names of folders.
        kept = [item for item in items if left_out.isdisjoint(mark.name for mark in item.iter_markers())]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _has_cuda(items: list[pytest.Item]) -> bool:
    if not any("cuda" in item.keywords for item in items):
        return False
    import torch

    return torch.cuda.is_available()
