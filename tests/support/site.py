"""The documentation site, built for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(folder: Path, site: Path, *, run_pages: bool = True) -> subprocess.CompletedProcess[str]:
    """Build the site of a checkout as `make docs` does, or without the output of its pages."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "RUN_PAGES": str(run_pages).lower()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def build_once(folder: Path) -> Path:
    """Build the site of this checkout in a folder, which several processes share: the first builds, the others wait."""
    from filelock import FileLock

    site, said = folder / "site", folder / "site.txt"
    with FileLock(folder / "site.lock"):
        if not said.exists():
            built = build(ROOT, site)
            said.write_text("" if built.returncode == 0 else built.stdout, encoding="utf-8")
    assert said.read_text(encoding="utf-8") == ""
    return site
