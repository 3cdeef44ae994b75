"""Tests run in forks of one process that has imported the frameworks, and nothing of this package.

The frameworks start no thread when they are imported, so that their forks are sound; each fork then
starts its own.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.mutants import MODULES, ROOT, Mutant

FRAMEWORKS = (
    "numpy",
    "scipy.special",
    "torch",
    "jax",
    "flax.linen",
    "flax.nnx",
    "optax",
    "orbax.checkpoint",
)
ENVIRONMENT = {
    "HYPOTHESIS_PROFILE": "ci",
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")},
}


@dataclasses.dataclass
class Order:
    """Which tests to run first: those that noticed most mutants, then the quickest; those over `limit` seconds not."""

    limit: float
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def total(self) -> float:
        """Seconds that the tests take which are run."""
        return sum(seconds for seconds in self.seconds.values() if seconds <= self.limit)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if self.seconds.get(item.nodeid, 0.0) <= self.limit]
        items.sort(key=lambda item: (-self.kills[item.nodeid], self.seconds.get(item.nodeid, 0.0)))


class Timed:
    """Writes how many seconds of the processor each test took, however busy the machine is, and which failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, Any, Any]:
        before = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - before
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps({"seconds": self.seconds, "failed": self.failed}))


def preload() -> None:
    """Import what takes long. Raises `RuntimeError` where that started threads, which no fork would have."""
    os.environ.update(ENVIRONMENT)
    for name in FRAMEWORKS:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "mixer_equiv"]
    threads = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").exists() else 1
    if loaded or threads > 1:
        raise RuntimeError(f"{threads} threads and {loaded} are here already, so that forks would not be fresh")


def clone(to: Path) -> Path:
    """A copy of the tree, in which a module can be changed."""
    for name in ("mixer_equiv", "tests", "benchmarks", "docs", "examples"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "mixer_equiv_pytest.py", "pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, to)
    return to


@dataclasses.dataclass
class Fork:
    """A run of some tests on a clone, begun when it is made."""

    tree: Path
    tests: tuple[str, ...]
    order: Order
    cpu_seconds: int
    keep_bytecode: bool = False

    def __post_init__(self) -> None:
        self.record = self.tree / "record.json"
        self.record.unlink(missing_ok=True)
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run()

    def _run(self) -> None:
        """In the fork: pytest, and away."""
        status = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_seconds, self.cpu_seconds + 5))
            output = os.open(self.tree / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.tree)
            sys.path[:] = [str(self.tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "conftest")]:
                del sys.modules[name]
            sys.dont_write_bytecode = not self.keep_bytecode

            paths = [f"tests/{name}" for name in self.tests]
            plugins = [self.order, Timed(self.record)]
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *paths], plugins))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    @staticmethod
    def outcome(status: int) -> str:
        """What a wait status means for a mutant: "survived", "killed" or "timed out"."""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            return "timed out"
        return "survived" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else "killed"

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def seen(self) -> dict[str, Any]:
        """What the tests took, and which failed; nothing where pytest did not come to its end."""
        return json.loads(self.record.read_text()) if self.record.exists() else {"seconds": {}, "failed": []}


def plant(tree: Path, mutant: Mutant) -> None:
    """The mutant in its place, and every other module as it is."""
    for module in MODULES:
        shutil.copy(ROOT / module, tree / module)
        shutil.rmtree((tree / module).parent / "__pycache__", ignore_errors=True)
    (tree / mutant.module).write_text(mutant.code, encoding="utf-8")
