"""Python scripts run in a process of their own, also with the frameworks blocked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

BLOCKED = """
import json, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "jaxlib", "flax"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


def python(script: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def printed(script: str, *arguments: Any, **environment: str) -> Any:
    """The JSON that a script prints; it must succeed."""
    finished = python(script, *arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)
