"""A benchmark as a whole: its measurements, the peak, and what cannot be timed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import time
from typing import Any

import numpy as np
import pytest

from mixer_equiv import ConfigError, Formulation
from mixer_equiv.bench import contestants, export
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import CONTESTANTS, Entry
from mixer_equiv.bench.measurement import BASELINE_AGAIN, BenchResult, _affordable_product, measure_cells
from mixer_equiv.bench.timing import paired_ratio
from mixer_equiv.models.torch import fast_mlp
from mixer_equiv.models.torch import packed as torch_packed
from mixer_equiv.models.torch.kernel_choice import preferred_kernels
from tests.support.cells import SMALL, small_bench


def test_the_kernels_of_a_row_are_told_where_they_are_not_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_mlp, "choose_path", lambda *_: "blas")
    monkeypatch.setattr(torch_packed, "kernels_for", lambda *arguments: "blas")
    names = "torch", "torch packed", "timm", "flax"
    plain = export.to_dict(small_bench([Entry(name) for name in names]))
    assert [row["kernels"] for row in plain["rows"][:4]] == ["blas", "blas", None, None]
    cell = "custom (1 x 6 x 12), float32, batch 3, cpu, inference"
    noted = [
        f"note: torch in {cell}: not by oneDNN's fused operations: plain products, the activation in place",
        f"note: torch packed in {cell}: not by oneDNN's fused operations: transposed weights in float32, "
        "plain products, the activation in place",
    ]
    assert export.note_lines(plain) == noted
    assert all(note in export.to_markdown(plain) for note in noted)
    monkeypatch.setattr(fast_mlp, "choose_path", lambda mixing, *_: "onednn" if mixing.axis == -1 else "blas")
    call = make_call(Entry("torch", Formulation(tokens="conv1d")), Cell(SMALL), 0)
    assert call.kernels() == "blas for tokens, onednn for channels"
    monkeypatch.undo()
    assert make_call(Entry("torch"), Cell(SMALL), 0).kernels() == "layers"
    large = make_call(Entry("torch"), Cell(dataclasses.replace(SMALL, channels_mlp_dim=2000), batch=6), 0)
    assert large.kernels() == f"layers for tokens, {preferred_kernels()} for channels"
    assert make_call(Entry("torch"), Cell(SMALL, mode="training"), 0).kernels() is None


def test_a_matrix_product_that_would_take_long_is_of_smaller_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def product(cell: Cell, size: int) -> Any:
        made.append(size)
        return lambda: None

    for seconds, sizes in ((0.0, [250, 500, 1000, 2000]), (1.0, [250])):
        made.clear()
        ticks = itertools.count(0.0, seconds)
        monkeypatch.setattr(time, "perf_counter", lambda ticks=ticks: next(ticks))
        assert _affordable_product(product, Cell(SMALL), 2000)[1] == sizes[-1]
        assert made == sizes


def test_a_smaller_product_is_told_and_counted_by_its_size(
    monkeypatch: pytest.MonkeyPatch, result: BenchResult
) -> None:
    plain = export.to_dict(result)
    gemm = [row for row in plain["rows"] if row["gemm_size"]]
    assert [row["gemm_size"] for row in gemm] == [32, 32]
    for row in gemm:
        assert row["gflops"] == pytest.approx(2 * 32**3 / row["ms"] / 1e6)
    gemm[1]["gemm_size"] = 16
    assert export.note_lines(plain)[-1].startswith("note: GEMM torch in custom (1 x 6 x 12), float32, batch 3, cpu")
    assert export.note_lines(plain)[-1].endswith("inference: matrices of 16 x 16, as larger ones take long")


def test_a_result_has_every_contestant_the_noise_and_a_peak_for_each_framework(result: BenchResult) -> None:
    rows = {row.name: row for row in result.measurements}
    assert [row.name for row in result.measurements] == [
        "torch",
        "timm",
        "flax",
        BASELINE_AGAIN,
        "GEMM jax",
        "GEMM torch",
    ]
    assert rows["timm"].ratio == paired_ratio(np.ones(10), np.ones(10))
    assert rows[BASELINE_AGAIN].ratio.median != 1.0
    assert max(rows[name].timing.share_of_peak for name in ("GEMM jax", "GEMM torch")) == 1.0
    for name in ("torch", "timm", "flax"):
        row = rows[name]
        low, median, high = row.timing.ms
        assert 0 < low <= median <= high
        assert row.images_per_second == pytest.approx(3 / (median / 1e3))
        assert row.timing.gflops == pytest.approx(row.cell.flops / median / 1e6)
        peak = max(rows[name].timing.gflops for name in ("GEMM jax", "GEMM torch"))
        assert row.timing.share_of_peak == pytest.approx(row.timing.gflops / peak)
        assert row.compile_seconds >= 0
    assert rows["flax"].compile_seconds > 10 * rows["flax"].timing.ms.median / 1e3


def test_settings_are_those_of_the_timing(result: BenchResult) -> None:
    assert result.settings["torch_threads"] == len(result.settings["cores_pinned"]) == 1
    assert result.settings["tf32"] == {"cuda.matmul": "ieee", "cudnn.conv": "ieee"}
    assert (result.settings["jax_x64"], result.settings["jax_matmul_precision"]) == (False, "highest")
    assert result.machine["torch"] == importlib.metadata.version("torch")


def test_a_program_is_timed_in_the_cells_that_it_runs_in() -> None:
    both = [Cell(SMALL, batch=2, mode=mode) for mode in ("inference", "training")]
    rows = measure_cells(both, [Entry("torch"), Entry("torch packed")], threads=1, gemm=32).measurements
    assert [row.name for row in rows] == [
        *("torch", "torch packed", BASELINE_AGAIN, "GEMM torch", "GEMM packed"),
        *("torch", BASELINE_AGAIN, "GEMM torch"),
    ]
    with pytest.raises(ConfigError, match=r"torch packed runs in none of these: custom .*, training"):
        measure_cells(both[1:], [Entry("torch"), Entry("torch packed")])


def test_programs_that_run_are_those_of_the_cells() -> None:
    def left_out(**fields: Any) -> set[str]:
        return set(CONTESTANTS) - set(contestants.names_running_in([Cell(SMALL, **fields)]))

    graphed = {"torch graphed", "timm graphed"}
    assert left_out() == left_out(dtype="bfloat16") == graphed
    assert left_out(mode="training") == left_out(dtype="float64") == {*graphed, "torch packed"}
    assert left_out(device="cuda", dtype="float16") == {"torch packed"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"baseline": "flax"}, "the baseline is 'flax'; it must be one that is timed: torch"),
        ({"rounds": 3}, "rounds is 3"),
        ({"rounds": 10**11}, "rounds is 100000000000; it may be at most"),
        ({"gemm": 10**8}, "gemm is 100000000; it may be at most"),
        ({"threads": 0}, "threads is 0"),
        ({"gemm": 0}, "gemm is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_timed_is_an_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_bench([Entry("torch")], **kwargs)
