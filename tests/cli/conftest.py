"""Checkpoints that the tests of several commands read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import ConventionWarning, convert, load, save
from mixer_equiv.layouts import LAYOUTS
from tests.support.checkpoints import WRITABLE
from tests.support.command_line import CONFIG, params


@pytest.fixture(autouse=True)
def no_width_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let outputs be as wide as in a pipe, whatever the shell or a plugin says."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint as the authors publish them: an npz that says nothing of itself."""
    np.savez(tmp_path / "published.npz", **params())
    return tmp_path / "published.npz"


@pytest.fixture(autouse=True)
def _the_registry_stays() -> Iterator[None]:
    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


# verify


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights in several layouts, other weights, and heads that show nothing."""
    folder = tmp_path_factory.mktemp("pair")
    np.savez(folder / "a.npz", **params())
    np.savez(folder / "zero head.npz", **params(head__kernel=np.zeros((20, 7)), head__bias=np.zeros(7)))
    np.savez(folder / "zero kernel.npz", **params(head__kernel=np.zeros((20, 7))))
    np.savez(folder / "nan.npz", **params(stem__bias=np.full(20, np.nan)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConventionWarning)
        for layout in WRITABLE:
            save(convert(load(folder / "a.npz"), to=layout), folder / f"{layout}.safetensors")
        save(convert(params(), to="jankrepl", config=CONFIG.replace(activation="gelu")), folder / "erf.safetensors")
        save(convert(params(1), to="torch"), folder / "other.pt")
    return folder
