"""The option `--device` of `pytest benchmarks/`."""

from __future__ import annotations

import pytest

from mixer_equiv.bench.cells import DEVICES


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=DEVICES, default="cpu", help="where Mixers are timed")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Read the option `--device`."""
    name: str = request.config.getoption("--device")
    return name
