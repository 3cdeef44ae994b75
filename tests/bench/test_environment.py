"""The machine, its threads and its memory, on systems that tell much and little."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from typing import Any

import numpy as np
import pytest
import torch

from mixer_equiv.bench import export
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.environment import (
    INSTRUCTION_LIMITS,
    describe_gpu,
    describe_instruction_set,
    extra_memory,
    framework_settings,
    pin_cores,
)
from mixer_equiv.bench.measurement import BenchResult
from tests.support.cells import small_bench


def test_a_system_that_pins_nobody_and_tells_no_load_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refused)
    monkeypatch.setattr(os, "getloadavg", refused)
    measured = small_bench([Entry("torch")])
    assert (measured.settings["cores_pinned"], measured.settings["torch_threads"]) == ([], 1)
    assert "not pinned" in export.condition_lines(export.to_dict(measured))[-1]
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.delattr(os, "sched_getaffinity")
    with pin_cores(1, ["torch"]) as cores:
        assert cores == []


def test_the_instruction_set_is_told_with_what_limits_it(monkeypatch: pytest.MonkeyPatch, result: BenchResult) -> None:
    for name in INSTRUCTION_LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": False})
    assert describe_instruction_set() == "AVX512 with avx512_bf16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert describe_instruction_set() == "AVX2 under ONEDNN_MAX_CPU_ISA=AVX2"
    plain = export.to_dict(result)
    assert f", {plain['machine']['instruction_set']}, " in export.condition_lines(plain)[-1]
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr("mixer_equiv.bench.environment._cpuinfo", lambda field: "sse avx2 avx_ne_convert")
    assert describe_instruction_set() == "AVX2 with avx_ne_convert under ONEDNN_MAX_CPU_ISA=AVX2"


def test_threads_are_as_before_once_something_was_timed() -> None:
    before = torch.get_num_threads()
    with pin_cores(1, ["torch"]) as cores:
        used = framework_settings(cores, ["torch"])
        assert used["torch_threads"] == len(cores) == 1
        assert not any(name.startswith("jax") for name in used)
    assert torch.get_num_threads() == before


def test_memory_is_what_a_call_takes_at_its_height() -> None:
    def call() -> None:
        np.ones(8_000_000).sum()

    assert extra_memory(call) == pytest.approx(64e6, rel=0.1)
    assert extra_memory(lambda: None) < 1e6


def test_the_machine_is_described_with_its_gpu(monkeypatch: pytest.MonkeyPatch, result: BenchResult) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: types.SimpleNamespace(total_memory=80 << 30))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    gpu = "Some GPU, 80 GiB, CUDA 13.0"
    assert describe_gpu() == gpu
    plain = export.to_dict(result)
    plain["machine"]["gpu"] = gpu
    assert f"{plain['machine']['date']}: {gpu}; {plain['machine']['processor']}, " in export.to_markdown(plain)


def test_memory_that_a_call_frees_after_its_end_is_measured_all_the_same() -> None:
    held: list[np.ndarray] = []

    def call() -> None:
        while held:
            time.sleep(0.001)
        held.append(np.ones(8_000_000))
        threading.Timer(0.012, held.clear).start()

    call()
    assert extra_memory(call) == pytest.approx(64e6, rel=0.1)
