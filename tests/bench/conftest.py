"""Fixtures of the tests of `bench`: a checker, a result and wrong contestants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mixer_equiv import Formulation, MixerConfig
from mixer_equiv.bench import timing
from mixer_equiv.bench.contestants import CONTESTANTS, Contestant, Entry
from mixer_equiv.bench.correctness import Checker
from mixer_equiv.bench.measurement import BenchResult
from mixer_equiv.equivalence.record.precision import torch_threads
from tests.support.cells import small_bench


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """Use one thread, and let a turn be a single call."""
    with torch_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN_SECONDS", 0.0)
        yield


@pytest.fixture(scope="package")
def checker() -> Checker:
    return Checker(3)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add two wrong contestants: timm with its own conventions, and one that is right in float64 only."""

    def erf(config: MixerConfig, formulation: Formulation) -> Any:
        from mixer_equiv.bench.peers_torch import timm_mixer

        return timm_mixer(config)

    def rough(config: MixerConfig, formulation: Formulation) -> Any:
        model = CONTESTANTS["torch"].make(config, formulation)
        forward = model.forward
        model.forward = lambda images: forward(images) if images.dtype == torch.float64 else forward(images) * 1.00001
        return model

    monkeypatch.setitem(CONTESTANTS, "erf", Contestant("torch", erf, "timm"))
    monkeypatch.setitem(CONTESTANTS, "rough", Contestant("torch", rough, "torch"))


@pytest.fixture(scope="package")
def result() -> BenchResult:
    return small_bench([Entry("torch"), Entry("timm"), Entry("flax")], baseline="timm")
