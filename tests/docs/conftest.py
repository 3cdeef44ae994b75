"""The site, built once for all tests of a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.site import build_once


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.getbasetemp()
    return build_once(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
