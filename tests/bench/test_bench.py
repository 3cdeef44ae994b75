"""What is timed is right, what is not is refused; rounds are interleaved, and ratios are what the clock says."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import itertools
import json
import os
import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import speed
from mixer_equiv import ConfigError, Formulation, MixerConfig
from mixer_equiv.bench import contestants, export, plots, timing
from mixer_equiv.bench.calls import batch_order, draw_inputs, make_call
from mixer_equiv.bench.cells import Cell, make_cells
from mixer_equiv.bench.contestants import CONTESTANTS, Contestant, Entry, make_entries, parse_formulations
from mixer_equiv.bench.correctness import Checker, Correctness
from mixer_equiv.bench.environment import (
    INSTRUCTION_LIMITS,
    describe_gpu,
    describe_instruction_set,
    extra_memory,
    framework_settings,
    pin_cores,
)
from mixer_equiv.bench.measurement import (
    BASELINE_AGAIN,
    BenchResult,
    EntryTiming,
    MixerTiming,
    Refusal,
    _affordable_product,
    fresh_compiler_for,
    measure_cells,
)
from mixer_equiv.bench.timing import paired_ratio, quartiles, time_in_rounds
from mixer_equiv.cli import app
from mixer_equiv.equivalence.record.precision import torch_threads
from mixer_equiv.models.flax import activations as jax_activations
from mixer_equiv.models.torch import activations as torch_activations
from mixer_equiv.models.torch import fused as torch_fused
from mixer_equiv.models.torch import inference as torch_inference
from mixer_equiv.models.torch import packed as torch_packed
from mixer_equiv.models.torch import packed_blas as torch_packed_blas
from mixer_equiv.models.torch import packed_onednn as torch_packed_onednn
from mixer_equiv.models.torch.inference import multiplies_bfloat16
from mixer_equiv.models.torch.processor import KERNELS, preferred_kernels
from mixer_equiv.render.bench import NARROW, Tables

SMALL = MixerConfig(
    num_classes=5,
    num_blocks=1,
    patch_size=2,
    image_size=(4, 6),
    hidden_dim=12,
    tokens_mlp_dim=7,
    channels_mlp_dim=20,
)
EAGER = ("torch", "torch packed", "timm", "tutorial", "lucidrains")
COMPILED = ("torch compiled", "torch graphed", "timm compiled", "timm graphed")
JITTED = ("flax", "nnx", "official")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread, and turns that are single calls."""
    with torch_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "TURN_SECONDS", 0.0)
        yield


# The clock


class Clock:
    """Time that passes only by calls that take some."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float) -> Any:
        def call() -> None:
            self.log.append(name)
            self.now += seconds

        return call


def test_a_round_has_a_turn_of_everyone_in_an_order_of_its_own() -> None:
    time = Clock()
    calls = {name: time.takes(name, 1.0) for name in "abc"}
    time_in_rounds(calls, 30, turn=1.0, clock=time)
    turns = time.log[3::2]  # the first three calls tell how long one takes; of the others every first warms up
    assert turns == time.log[4::2]
    rounds = [tuple(turns[i : i + 3]) for i in range(0, 90, 3)]
    assert {tuple(sorted(each)) for each in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) == 6


def test_seconds_are_those_of_one_call_however_many_fill_a_turn() -> None:
    time = Clock()
    seconds = time_in_rounds({"slow": time.takes("slow", 3.0), "fast": time.takes("fast", 0.25)}, 10, 0, 1.0, time)
    assert np.array_equal(seconds["slow"], np.full(10, 3.0))
    assert np.array_equal(seconds["fast"], np.full(10, 0.25))
    assert time.log.count("slow") == 1 + 2 * 10
    assert time.log.count("fast") == 1 + 5 * 10


def test_fewer_than_ten_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 9"):
        time_in_rounds({}, 9)


def test_a_ratio_is_the_median_of_pairs_and_not_of_sides() -> None:
    baseline = np.array([1.0, 10.0, 100.0] * 4)  # a machine that is busier and busier
    ratio = paired_ratio(baseline / 2, baseline)
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        ratio = paired_ratio(rng.lognormal(0, 0.1, 15), np.full(15, 1.2))
        held += ratio.low < 1.2 < ratio.high
    assert 0.90 < held / 300 < 0.99


def test_quartiles_are_numpys() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


# The cells


@pytest.mark.parametrize("config", [SMALL, MixerConfig.from_name("S/32")], ids=["small", "S/32"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_cell_counts_the_operations_that_torch_counts(config: MixerConfig, mode: str) -> None:
    cell = Cell(config, batch=2, mode=mode)
    call = make_call(Entry("tutorial"), cell, 0)
    with FlopCounterMode(display=False) as counted:
        call()
    assert cell.flops == counted.get_total_flops()


def test_cells_are_every_combination() -> None:
    made = list(make_cells([SMALL], ["float32", "bfloat16"], [1, 8], "cpu", ["inference", "training"]))
    assert len(set(made)) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32"),
        ({"dtype": "float16"}, "dtype is 'float16' on the CPU"),
        ({"batch": 0}, "batch is 0"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of cpu, cuda"),
        ({"mode": "sleep"}, "mode is 'sleep'; it must be one of inference, training"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Cell(SMALL, **fields)


def test_contestants_are_programs_in_the_formulations_that_they_can_have() -> None:
    given = parse_formulations(["conv,matmul,linear", "conv, linear, linear"])
    assert [str(each) for each in make_entries(["torch", "timm"], given)] == [
        "torch",
        "torch (conv, matmul, linear)",
        "timm",
    ]
    assert len(parse_formulations(["all"])) == 30


@pytest.mark.parametrize("text", ["conv", "conv,linear,linear,linear", "conv,none,linear"])
def test_what_is_no_formulation_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="formulation"):
        parse_formulations([text])


@pytest.mark.parametrize(("name", "formulation"), [("mlp", Formulation()), ("timm", Formulation(tokens="matmul"))])
def test_what_is_no_contestant_is_an_error(name: str, formulation: Formulation) -> None:
    with pytest.raises(ConfigError, match=r"program is 'mlp'|timm is written in one way"):
        Entry(name, formulation)


# The proof


@pytest.fixture(scope="module")
def checker() -> Checker:
    return Checker(3)


def proven(checker: Checker, entry: Entry, cell: Cell) -> Correctness:
    return checker.check(entry, cell, make_call(entry, cell, checker.seed))


@pytest.mark.parametrize("conventions", [("gelu", 1e-5), ("relu", 1e-4), ("silu", 1e-6), ("quick_gelu", 1e-3)])
@pytest.mark.parametrize("name", [*EAGER, *JITTED])
def test_every_program_follows_the_config(name: str, conventions: tuple[str, float]) -> None:
    activation, eps = conventions
    config = dataclasses.replace(SMALL, activation=activation, layer_norm_eps=eps)
    seen = proven(Checker(3), Entry(name), Cell(config, "float32", 3))
    assert (seen.refused, seen.exact <= 1e-12) == (None, True)


@pytest.mark.parametrize("name", [*EAGER, *JITTED])
def test_every_program_is_the_official_function(checker: Checker, name: str) -> None:
    for dtype, batch in (
        (("float32", 3), ("bfloat16", 1)) if name in ("torch", "torch packed", "flax") else (("float32", 3),)
    ):
        seen = proven(checker, Entry(name), Cell(SMALL, dtype, batch))
        assert seen.refused is None
        assert seen.exact <= 1e-12
        assert 0 < seen.error <= seen.bound


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_compiled_program_is_the_official_function(checker: Checker, mode: str) -> None:
    entry = Entry("torch compiled")
    with fresh_compiler_for([entry]):
        seen = proven(checker, entry, Cell(SMALL, "float32", 3, mode=mode))
    assert seen.refused is None
    assert 0 < seen.error <= seen.bound


@pytest.mark.parametrize("name", ["torch", "timm", "tutorial", "lucidrains", "flax"])
def test_every_training_step_is_the_official_one(checker: Checker, name: str) -> None:
    seen = proven(checker, Entry(name), Cell(SMALL, "float32", 3, mode="training"))
    assert seen.refused is None
    assert seen.exact <= 1e-12


def test_weights_are_as_before_once_a_step_was_proven() -> None:
    for name in ("torch", "flax"):
        call = make_call(Entry(name), Cell(SMALL, batch=2, mode="training"), 0)
        first, again = call.updates(8.0), call.updates(8.0)
        assert all(np.array_equal(first[key], again[key]) for key in first)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """More programs: timm as it comes, and one that is right in float64 alone."""

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


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_wrong_program_is_refused_and_not_timed(mode: str) -> None:
    rows = small_bench([Entry("torch"), Entry("erf"), Entry("rough")], mode=mode).measurements
    by_name = {row.name: row for row in rows}
    assert isinstance(by_name["torch"], EntryTiming)
    assert isinstance(by_name["erf"], Refusal)
    assert by_name["erf"].reason.startswith("another function: float64 residual")
    if mode == "inference":
        assert isinstance(by_name["rough"], Refusal)
        assert by_name["rough"].reason.startswith("inexact: its error in float32 is")


def plant_another_gelu(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In these kernels of ours, which are then taken."""
    by_dtype = {torch.float32: kernels, torch.bfloat16: "float32" if kernels == "blas" else kernels}
    monkeypatch.setattr(torch_inference, "way_of", lambda mixing, dtype, *_: by_dtype[dtype])
    monkeypatch.setattr(torch_packed, "kernels_for", lambda *arguments: kernels)
    monkeypatch.setattr(torch_activations, "_CUBIC", 0.0448)
    monkeypatch.setitem(torch_fused.POST_OPS, "gelu_tanh", torch_fused.POST_OPS["gelu"])


@pytest.mark.parametrize("kernels", KERNELS)
def test_fast_kernels_of_another_function_are_refused(
    kernels: str, checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_another_gelu(kernels, monkeypatch)
    for name in ("torch", "torch packed"):
        refused = proven(checker, Entry(name), Cell(SMALL, "float32", 3)).refused
        assert refused is not None
        assert refused.startswith("inexact: its error in float32 is")


@pytest.mark.parametrize("kernels", KERNELS if multiplies_bfloat16() else ["blas"])
def test_half_precision_must_pass_in_float32_too(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_another_gelu(kernels, monkeypatch)
    for name in ("torch", "torch packed"):
        refused = proven(Checker(4), Entry(name), Cell(SMALL, "bfloat16", 3)).refused
        assert refused is not None
        assert refused.startswith("inexact: its error in float32 is")


def _with_eps(norm: torch.nn.LayerNorm, dtype: Any = None) -> Any:
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    return lambda x: torch.nn.functional.layer_norm(
        x, norm.normalized_shape, weight.to(x.dtype), bias.to(x.dtype), 1.02e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_eps_that_is_wrong_by_a_fiftieth_is_noticed_where_there_is_no_float64(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_packed_onednn, "copied_norm", _with_eps)
    monkeypatch.setattr(torch_packed_blas, "copied_norm", _with_eps)
    refused = proven(Checker(4), Entry("torch packed"), Cell(SMALL, dtype, 3)).refused
    assert refused is not None
    assert refused.startswith("inexact: its error in float32 is")


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_compiled_program_is_held_against_the_truth_too(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    erf = torch.nn.functional.gelu
    monkeypatch.setitem(
        torch_activations.ACTIVATIONS,
        "gelu_tanh",
        lambda x: erf(x, approximate="none" if torch.compiler.is_compiling() else "tanh"),
    )
    entry, checker = Entry("torch compiled"), Checker(4)
    with fresh_compiler_for([entry]):
        seen = proven(checker, entry, Cell(SMALL, "bfloat16", 3, mode=mode))
    assert seen.exact <= 1e-12
    assert seen.refused is not None
    assert seen.refused.startswith("inexact: its error in ")


def test_logits_of_another_dtype_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(config: MixerConfig, formulation: Formulation) -> Any:
        model = CONTESTANTS["torch"].make(config, formulation)
        forward = model.forward
        model.forward = lambda images: forward(images).float()
        return model

    monkeypatch.setitem(CONTESTANTS, "wide", Contestant("torch", wide, "torch"))
    seen = proven(Checker(4), Entry("wide"), Cell(SMALL, "bfloat16", 3))
    assert seen.refused == "its logits are float32, where all are to compute in bfloat16"


def test_one_lucky_yardstick_bounds_nobody() -> None:
    config = dataclasses.replace(SMALL, num_classes=1, hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=8)
    for seed in range(8):
        for name in ("torch packed", "timm", "lucidrains"):
            assert proven(Checker(seed), Entry(name), Cell(config, batch=2)).refused is None


@pytest.mark.parametrize("name", ["torch", "torch packed", "flax", "nnx"])
def test_other_weights_are_loaded_and_the_usual_ones_are_back_after_a_proof(checker: Checker, name: str) -> None:
    cell = Cell(SMALL, batch=3)
    call = make_call(Entry(name), cell, checker.seed)
    first = call.logits()
    checker.check(Entry(name), cell, call)
    assert np.array_equal(call.logits(), first)
    call.load(draw_inputs(SMALL, checker.seed, "faint").params)
    assert not np.allclose(call.logits(), first, rtol=0.1)


def test_what_cannot_be_run_is_a_refused_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: MixerConfig, formulation: Formulation) -> Any:
        model = CONTESTANTS["torch"].make(config, formulation)
        model.forward = lambda images: 1 / 0
        return model

    monkeypatch.setitem(CONTESTANTS, "broken", Contestant("torch", broken, "torch"))
    result = small_bench([Entry("torch"), Entry("broken")], baseline="torch")
    by_name = {row.name: row for row in result.measurements}
    assert by_name["broken"].reason == "it cannot be run: ZeroDivisionError: division by zero"
    assert isinstance(by_name["torch"], EntryTiming)
    assert [each.name for each in result.refusals] == ["broken"]


def test_what_is_given_twice_is_timed_once() -> None:
    cell = Cell(SMALL, batch=3)
    result = measure_cells([cell, cell], [Entry("torch"), Entry("torch")], threads=1, gemm=32)
    assert [row.name for row in result.measurements] == ["torch", BASELINE_AGAIN, "GEMM torch"]


class WithoutGradient(torch.autograd.Function):
    """The GELU; in half precision its gradient is a part of what it should be."""

    part = 0.0

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        slope = torch.func.vjp(lambda y: torch.nn.functional.gelu(y, approximate="tanh"), x)[1](gradient)[0]
        return slope * (WithoutGradient.part if x.dtype == torch.bfloat16 else 1.0)


@jax.custom_jvp
def without_gradient(x: jax.Array) -> jax.Array:
    """The same in JAX."""
    return jax.nn.gelu(x)


@without_gradient.defjvp
def _without_gradient_jvp(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, Any]:
    part = WithoutGradient.part if primals[0].dtype == jax.numpy.bfloat16 else 1.0
    return without_gradient(*primals), jax.jvp(jax.nn.gelu, primals, tangents)[1] * part


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "table", "activation"),
    [
        ("torch", torch_activations.ACTIVATIONS, WithoutGradient.apply),
        ("flax", jax_activations.ACTIVATIONS, without_gradient),
    ],
)
def test_gradients_that_are_lost_in_half_precision_are_noticed(
    name: str, table: dict[str, Any], activation: Any, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithoutGradient, "part", part)
    monkeypatch.setitem(table, "gelu_tanh", activation)
    config = dataclasses.replace(SMALL, num_blocks=2)
    refused = proven(Checker(5), Entry(name), Cell(config, "bfloat16", 3, mode="training")).refused
    assert refused is not None
    assert refused.startswith("inexact: its error in bfloat16 is")


def test_a_batch_has_no_order_that_a_program_could_use() -> None:
    for batch in (8, 32):
        drawn = batch_order(batch)
        assert drawn[:2].tolist() == [0, 1]
        assert not any(np.array_equal(drawn, np.resize(drawn[:period], batch)) for period in range(1, batch // 2 + 1))
    assert (batch_order(1, 0).item(), batch_order(1, 1).item()) == (0, 1)


def small_bench(given: list[Entry], mode: str = "inference", **kwargs: Any) -> BenchResult:
    return measure_cells([Cell(SMALL, batch=3, mode=mode)], given, **{"threads": 1, "gemm": 32, **kwargs})


# The whole


def test_the_kernels_of_a_row_are_told_where_they_are_not_onednns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_inference, "way_of", lambda *_: "blas")
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
    monkeypatch.setattr(torch_inference, "way_of", lambda mixing, *_: "onednn" if mixing.axis == -1 else "blas")
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


@pytest.fixture(scope="module")
def result() -> BenchResult:
    return small_bench([Entry("torch"), Entry("timm"), Entry("flax")], baseline="timm")


def test_a_result_has_every_contestant_the_noise_and_a_peak_for_each_framework(result: BenchResult) -> None:
    assert [row.name for row in result.measurements] == [
        "torch",
        "timm",
        "flax",
        BASELINE_AGAIN,
        "GEMM jax",
        "GEMM torch",
    ]
    rows = {row.name: row for row in result.measurements}
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


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_memory_that_xla_plans_is_what_a_call_takes(mode: str) -> None:
    config = dataclasses.replace(SMALL, num_blocks=3, hidden_dim=200, tokens_mlp_dim=300, channels_mlp_dim=2000)
    call = make_call(Entry("flax"), Cell(config, batch=500, mode=mode), 0)
    call()
    measured = call.memory()
    assert measured > 20e6
    assert call.planned_memory() == pytest.approx(measured, rel=0.2)


def test_in_training_ours_keep_less_than_the_official_model() -> None:
    config = dataclasses.replace(SMALL, num_blocks=11, hidden_dim=64, tokens_mlp_dim=128, channels_mlp_dim=256)
    kept = {
        name: make_call(Entry(name), Cell(config, batch=100, mode="training"), 0).planned_memory()
        for name in ("official", "flax", "nnx")
    }
    assert kept["flax"] == kept["nnx"] <= 0.8 * kept["official"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["flax", "nnx"])
def test_jitted_inference_compiles_to_the_program_of_the_official_model(name: str, dtype: str) -> None:
    config = dataclasses.replace(SMALL, num_blocks=2)

    def compiled(name: str) -> str:
        call = make_call(Entry(name), Cell(config, dtype), 0)
        text = call.infer.lower(call.params, call.images).compile().as_text()
        _, _, text = text.partition("\n")  # the module's name
        return re.sub(r", metadata={[^}]*}", "", text[text.index("\n%") :])

    assert compiled(name) == compiled("official")


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


@pytest.mark.parametrize(("name", "framework"), [("torch", "torch"), ("flax", "JAX")])
def test_each_framework_says_that_it_has_no_cuda(name: str, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = jax.devices

    def of_kind(kind: str = "cpu") -> list[jax.Device]:
        if kind == "gpu":
            raise RuntimeError("no GPU")
        return devices(kind)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(jax, "devices", of_kind)
    with pytest.raises(ConfigError, match=f"device is 'cuda', and {framework} "):
        measure_cells([Cell(SMALL, device="cuda")], [Entry(name)])


# What a person sees


def test_csv_and_json_hold_every_number(result: BenchResult) -> None:
    plain = json.loads(json.dumps(export.to_dict(result), allow_nan=False))
    assert [row["program"] for row in plain["rows"]] == [row.name for row in result.measurements]
    read = list(csv.DictReader(io.StringIO(export.to_csv(plain))))
    assert [float(row["ms"]) for row in read] == [row["ms"] for row in plain["rows"]]
    assert {"torch", "jax", "processor", "load_before_and_after"} <= plain["machine"].keys()


def test_a_terminal_of_80_columns_shows_every_name_and_number_whole(result: BenchResult) -> None:
    plain = export.to_dict(result)
    row = {**plain["rows"][0], "images_per_second": 12345.67}
    rows = [{**row, "program": name} for name in (*CONTESTANTS, "torch compiled (linear, depthwise_conv, linear)")]
    console = Console(file=io.StringIO(), width=80)
    console.print(Tables({**plain, "rows": rows}))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert all(re.search(rf"^ ?{name} +12,345\.7 ", shown, re.MULTILINE) for name in CONTESTANTS)
    assert all(heading in shown for heading in NARROW)


def test_a_wide_terminal_shows_all_columns(result: BenchResult) -> None:
    plain = export.to_dict(result)
    for width, shown in ((80, NARROW), (150, export.COLUMNS)):
        console = Console(width=width, file=io.StringIO())
        console.print(Tables(plain))
        headings = next(line for line in console.file.getvalue().splitlines() if "images/s" in line)
        assert {heading for heading in export.COLUMNS if heading in headings} == set(shown)


def test_markdown_names_every_program_and_why_one_was_refused(result: BenchResult) -> None:
    plain = export.to_dict(result)
    plain["rows"][1] |= {"refused": "another function", "ms": None}
    shown = export.to_markdown(plain)
    assert all(f"| {row.name} |" in shown for row in result.measurements)
    assert "refused: timm in custom (1 x 6 x 12), float32, batch 3, cpu, inference: another function" in shown
    assert "torch_threads 1" in shown


def test_a_plot_is_an_svg_and_a_png_of_every_program(result: BenchResult, tmp_path: Path) -> None:
    rows = export.to_dict(result)["rows"]
    written = plots.plot(rows, tmp_path / "speed.svg")
    assert [path.name for path in written] == ["speed.svg", "speed.png"]
    assert written[1].read_bytes().startswith(b"\x89PNG")
    first = written[0].read_text()
    assert "<svg" in first
    plots.plot(rows, tmp_path / "speed.png")
    assert written[0].read_text() == first


def test_batches_that_are_several_are_plotted_as_lines_and_single_ones_as_bars(
    result: BenchResult, tmp_path: Path
) -> None:
    rows = export.to_dict(result)["rows"]
    shown = {
        name: plots.plot(given, tmp_path / f"{name}.svg")[0].read_text()
        for name, given in (("bars", rows), ("lines", [*rows, *({**row, "batch": 8} for row in rows)]))
    }
    assert ("matplotlib.axis_4" in shown["lines"], "matplotlib.axis_4" in shown["bars"]) == (True, False)


def test_a_program_has_the_same_colour_in_every_plot() -> None:
    names = [
        *CONTESTANTS,
        "flax (conv, matmul, linear)",
        "torch (conv, conv1d, linear)",
        "torch (conv, matmul, linear)",
    ]
    rows = [{"program": name, "ours": CONTESTANTS[name.partition(" (")[0]].ours} for name in names]
    styles = plots._styles(rows)
    assert {row["program"]: plots._styles([row])[row["program"]]["color"] for row in rows} == {
        name: style["color"] for name, style in styles.items()
    }
    assert styles["torch (conv, conv1d, linear)"]["color"] == styles["torch"]["color"]
    assert len({(style["color"], style["marker"]) for style in styles.values()}) == len(names)


@pytest.mark.parametrize(("name", "rows"), [("speed.pdf", None), ("speed.svg", [])])
def test_what_cannot_be_plotted_is_an_error(result: BenchResult, tmp_path: Path, name: str, rows: Any) -> None:
    with pytest.raises(ConfigError, match=r"a plot is written as|there is nothing to plot"):
        plots.plot(export.to_dict(result)["rows"] if rows is None else rows, tmp_path / name)


def test_the_readmes_tables_have_every_ratio(result: BenchResult) -> None:
    plain = export.to_dict(result)
    ratios = {each.name: each.ratio for each in result.measurements if isinstance(each, MixerTiming) and each.ratio}
    shown = speed.readme_table([plain, {**plain, "baseline": "torch"}]).splitlines()
    rows = dict(line.strip("| ").rsplit(" | ", 1) for line in shown if line.startswith("| "))
    for name, ratio in ratios.items():
        assert rows.pop(name) == f"{ratio.median:.2f}"
    instructions = plain["machine"]["instruction_set"].split()[0]
    assert rows.pop(f"inference, cpu, {instructions}").endswith("<br>float32<br>batch 3")
    timm = next(row for row in result.measurements if row.name == "timm")
    assert rows.pop("timm, images/s") == f"{timm.images_per_second:.1f}"
    assert list(rows) == ["---"]


def test_the_readmes_tables_have_no_numbers_of_a_cell_without_a_baseline(result: BenchResult) -> None:
    plain = export.to_dict(result)
    refused = [{**row, "batch": 8, "ratio": None, "images_per_second": None} for row in plain["rows"]]
    shown = speed.readme_table([{**plain, "rows": plain["rows"] + refused}]).splitlines()
    assert shown[0].endswith("<br>batch 8 |")
    assert all(line.endswith(" |  |") for line in shown[2:] if line.startswith("|"))


def test_make_bench_fails_if_a_call_is_wrong(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = export.to_dict(result)
    monkeypatch.setattr(speed, "run", lambda section, device, threads: plain)
    assert speed.main(["quick"]) == 0
    plain["rows"][0] |= {"refused": "another function"}
    assert speed.main(["quick"]) == 1


TINY = dataclasses.asdict(SMALL) | {"activation": "gelu_tanh"}
COMMAND = ["bench", "--kwargs", json.dumps(TINY), "--batch", "2", "--threads", "1", "--gemm", "32"]


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"speed.{name}") for name in ("json", "csv", "markdown")}
    options = [text for name, path in files.items() for text in (f"--{name}", path)]
    outcome = CliRunner().invoke(app, [*COMMAND, "--program", "torch", "--program", "timm", *options])
    assert outcome.exit_code == 0, outcome.output
    plain = json.loads(Path(files["json"]).read_text())
    assert plain["baseline"] == "timm"
    assert f"{plain['rows'][0]['images_per_second']:,.1f}" in outcome.output
    assert Path(files["csv"]).read_text() == export.to_csv(plain)
    assert Path(files["markdown"]).read_text() == export.to_markdown(plain)


@pytest.mark.usefixtures("wrong")
def test_where_all_are_refused_everything_but_the_plot_is_written(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg")]
    outcome = CliRunner().invoke(app, [*COMMAND, *files, "--program", "erf"])
    assert outcome.exit_code == 1
    assert "refused: erf" in outcome.output
    assert "x.svg is not written: all were refused" in outcome.output.replace("\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.usefixtures("wrong")
def test_the_command_fails_if_what_it_times_is_wrong() -> None:
    outcome = CliRunner().invoke(app, [*COMMAND, "--program", "torch", "--program", "erf"])
    assert outcome.exit_code == 1
    assert "refused: erf" in outcome.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--variant", "Z/16"], "Z/16"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--program", "jax"], "program is 'jax'"),
        (["--rounds", "2"], "rounds is 2"),
        (["--baseline", "nobody"], "the baseline is 'nobody'"),
        (["--kwargs", '{"width": 1}'], "MixerConfig has no field width; its fields are num_classes"),
        (["--kwargs", '{"name": "Z"}'], "MixerConfig has no field name; its fields are num_classes"),
        (["--kwargs", '{"num_classes": 0}'], "num_classes is 0; a timed Mixer has a head"),
        (["--threads", "1000"], "threads is 1000; this process may use "),
    ],
)
def test_the_command_says_what_it_cannot_do(options: list[str], message: str) -> None:
    outcome = CliRunner().invoke(app, [*COMMAND, *options])
    assert outcome.exit_code == 2
    assert message in outcome.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "-"], "--csv is -; only --json goes to the standard output"),
        (["--markdown", "folder"], "--markdown is folder, a directory"),
        (["--json", "missing/speed.json"], "cannot be written: missing is no directory"),
        (["--json", "same", "--csv", "./same"], "are both"),
        (["--plot", "speed.pdf"], "a plot is written as"),
        (["--plot", "pictures.svg"], "pictures.png is a directory"),
        (["--csv", "speed.safetensors"], "by its suffix a checkpoint"),
        (["--csv", os.devnull], f"--csv is {os.devnull}, a pipe or a device; give the name of a file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_timed(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "pictures.png"):
        (tmp_path / folder / "below").mkdir(parents=True)
    (tmp_path / "kept.csv").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("mixer_equiv.bench.measurement.measure_cells", None)
    kept = [] if "--csv" in options else ["--csv", "kept.csv"]
    outcome = CliRunner().invoke(app, [*COMMAND, *kept, *options])
    assert outcome.exit_code == 2, outcome.output
    assert message in outcome.output
    assert (sorted(tmp_path.rglob("*")), (tmp_path / "kept.csv").read_text()) == (before, "kept")


def test_programs_are_those_that_the_docs_name() -> None:
    assert set(CONTESTANTS) == {*EAGER, *JITTED, *COMPILED}
