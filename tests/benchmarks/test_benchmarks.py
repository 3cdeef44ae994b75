"""Benchmarks time right answers, and notice wrong ones; recorded results and their pages agree."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import breakdown, conversion, gpu, mixing, pages, processes, rates, result_files, stack_faults, tutorial
from benchmarks.stack_runs import LINEAR_STEM, RunOptions, StackResults, run_stack_in_flax, run_stack_in_torch
from benchmarks.stack_verification import POLICIES, Mismatch, Verification, compare_results
from benchmarks.stacks import Stack, convert_stack, draw_stack
from mixer_equiv import MixerConfig, convert, load, save
from mixer_equiv.bench import export
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import CONTESTANTS, Entry
from mixer_equiv.bench.environment import Machine
from mixer_equiv.bench.measurement import measure_cells
from mixer_equiv.bench.peers_torch import TutorialMixer
from mixer_equiv.equivalence.policy import residual
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.equivalence.sides.runners import run_reference
from mixer_equiv.formulation import TOKENS_CHOICES
from mixer_equiv.models.torch import activations as torch_activations
from mixer_equiv.models.torch import fast_mlp, fused_onednn
from mixer_equiv.models.torch import formulations as torch_formulations

SMALL = tutorial.TUTORIAL_CONFIGS[0]


@pytest.fixture(scope="module")
def verified() -> tuple[Stack, dict[str, np.ndarray], StackResults, StackResults]:
    """Three draws of the smallest shape, the weights by torch's names, and both frameworks' results."""
    stack = draw_stack(SMALL, 3, 4, 0)
    state = convert_stack(stack)
    return stack, state, run_stack_in_flax(stack, RunOptions()), run_stack_in_torch(stack, state, RunOptions())


@pytest.mark.parametrize(
    "config", [tutorial.TUTORIAL_CONFIGS[18], tutorial.TUTORIAL_CONFIGS[93]], ids=["one block", "two blocks"]
)
def test_faults_planted_in_one_draw_are_found_in_it_alone(config: MixerConfig) -> None:
    assert stack_faults.missed_faults(config, 3, 4, 0, RunOptions()) == []


def test_a_comparison_that_sees_nothing_misses_every_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_faults, "compare_results", lambda *arguments: Verification((), (), 0.0, 0.0))
    missed = stack_faults.missed_faults(SMALL, 2, 3, 0, RunOptions())
    assert [miss.partition(" in draw")[0] for miss in missed] == [
        "a weight off by one ulp",
        "a weight off by a millionth, unseen by the weights' own comparison",
        "the wrong GELU",
        "the wrong eps",
        "a gradient off by a millionth",
    ]


def test_a_false_alarm_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    alarm = Verification((Mismatch(0, "outputs", "alarm"), Mismatch(1, "outputs", "alarm")), (), 0.0, 0.0)
    monkeypatch.setattr(stack_faults, "compare_results", lambda *arguments: alarm)
    assert stack_faults.missed_faults(SMALL, 2, 3, 0, RunOptions())[0].startswith("nothing in draw")


def test_draws_differ_and_their_results_are_the_reference_s(verified: Any) -> None:
    stack, _, in_flax, in_torch = verified
    assert len({array[i].tobytes() for array in stack.params.values() for i in range(3)}) == 3 * len(stack.params)
    for i in range(3):
        params = {name: array[i] for name, array in stack.params.items()}
        expected = run_reference(SMALL, params, stack.images[i])["logits"]
        assert residual(in_flax.outputs[i], expected) <= 1e-12
        assert residual(in_torch.outputs[i], expected) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(flax="vmap", xla_options={}),
        RunOptions(flax="map", torch="loop"),
        RunOptions("vmap", "loop", 2, {}, LINEAR_STEM, LINEAR_STEM),
    ],
    ids=["vmap, XLA's own options", "lax.map, draw by draw", "linear stems, threads"],
)
def test_every_way_gives_the_same_numbers(verified: Any, options: RunOptions) -> None:
    stack, state, *_ = verified
    seen = compare_results(stack, state, run_stack_in_flax(stack, options), run_stack_in_torch(stack, state, options))
    assert (seen.mismatches, seen.rounding) == ((), ())
    assert 0 < seen.outputs <= 1e-12
    assert 0 < seen.gradients <= 1e-12


def test_threads_are_given_back(verified: Any) -> None:
    stack, state, *_ = verified
    before = torch.get_num_threads()
    run_stack_in_torch(
        stack.only(0), {name: array[:1] for name, array in state.items()}, RunOptions(threads=before + 1)
    )
    assert torch.get_num_threads() == before


def test_rounding_is_told_from_a_fault_by_float32(verified: Any) -> None:
    """A stem that shifts all channels by 1e4: Flax's fast variance loses digits, and no function changed."""
    stack, *_ = verified
    shifted = {**stack.params, "stem/bias": stack.params["stem/bias"] + np.array([[0.0], [0.0], [1e4]])}
    stack = dataclasses.replace(stack, params=shifted)
    state = convert_stack(stack)
    in_flax, in_torch = run_stack_in_flax(stack, RunOptions()), run_stack_in_torch(stack, state, RunOptions())
    seen = compare_results(stack, state, in_flax, in_torch)
    assert (seen.mismatches, seen.rounding) == ((), (2,))


def test_outputs_that_no_image_moves_are_a_finding(verified: Any) -> None:
    stack, state, in_flax, in_torch = verified
    still = np.broadcast_to(in_flax.outputs[:, :1], in_flax.outputs.shape)
    seen = compare_results(
        stack, state, dataclasses.replace(in_flax, outputs=still), dataclasses.replace(in_torch, outputs=still)
    )
    assert {(mismatch.draw, mismatch.message) for mismatch in seen.mismatches} == {
        (i, "they hardly move with the image") for i in range(3)
    }


def test_not_a_number_is_a_finding_in_outputs_and_in_gradients(verified: Any) -> None:
    stack, state, in_flax, in_torch = verified
    outputs, kernel = in_torch.outputs.copy(), in_torch.gradients[stack_faults.CANONICAL_NAME].copy()
    outputs[1, 2, 3] = kernel[2, 0, 0] = np.nan
    broken = StackResults(outputs, {**in_torch.gradients, stack_faults.CANONICAL_NAME: kernel})
    found = compare_results(stack, state, in_flax, broken).mismatches
    assert {(mismatch.draw, mismatch.tier) for mismatch in found} == {(1, "outputs"), (2, "gradients")}


def test_the_tutorial_s_check_sees_what_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(tutorial.TUTORIAL_CONFIGS)) == 128
    tutorial.check_as_tutorial(SMALL)
    wider, real = SMALL.replace(tokens_mlp_dim=3), TutorialMixer
    monkeypatch.setattr(tutorial, "TutorialMixer", lambda config: real(wider))
    with pytest.raises(AssertionError):
        tutorial.check_as_tutorial(SMALL)


def test_sides_take_turns_in_being_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)
    ran: list[tuple[str, MixerConfig]] = []
    sides = {name: lambda config, seed, name=name: ran.append((name, config)) for name in "abc"}
    seconds = rates.time_in_turns(sides, tutorial.TUTORIAL_CONFIGS[:4])
    assert "".join(name for name, _ in ran) == "abcbcacababc"
    assert [config for _, config in ran] == [config for config in tutorial.TUTORIAL_CONFIGS[:4] for _ in range(3)]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.fixture
def run() -> dict[str, Any]:
    """The numbers of a run of two shapes with 10 draws."""
    seconds = {"tutorial": [1.0, 3.0], "stack": [2.0, 2.0], "one": [2.0, 3.0]}
    undone = {"as it is": [1.0, 2.0], "slower": [2.0, 4.0], "faster": [0.5, 1.0]}
    seen = [Verification((), (1, 4), 1e-15, 2e-14), Verification((), (), 3e-15, 1e-14)]
    with Machine() as machine:
        pass
    side_by_side = rates.SideBySide(seconds, seen)
    return rates.summarize_run(side_by_side, undone, 10, {**machine.describe(), "cores_had": 1.0})


def test_rates_are_cases_over_seconds(run: dict[str, Any]) -> None:
    assert run["cases_per_second"] == {"tutorial": 0.5, "stack": 5.0, "one": 0.4}
    assert (run["times_the_tutorial"], run["times_the_tutorial_one_draw"]) == (10.0, 0.8)
    assert run["paired_quartiles"] == {"stack": [7.5, 10.0, 12.5], "one": [0.62, 0.75, 0.88]}
    assert run["undone"] == {"slower": 2.0, "faster": 0.5}
    assert (run["rounding"], run["largest_residual"]) == (2, {"outputs": 3e-15, "gradients": 2e-14})


def test_a_slow_run_fails(monkeypatch: pytest.MonkeyPatch, run: dict[str, Any]) -> None:
    monkeypatch.setattr(rates, "missed_faults", lambda *arguments: [])
    monkeypatch.setattr(rates, "warm_up", lambda: None)
    monkeypatch.setattr(rates, "time_sides", lambda configs, draws: rates.SideBySide({}, []))
    for times, fails in ((rates.LEAST_SPEEDUP - 0.1, True), (rates.LEAST_SPEEDUP, False)):
        monkeypatch.setattr(
            rates, "summarize_run", lambda *arguments, times=times: {**run, "times_the_tutorial": times}
        )
        if fails:
            with pytest.raises(AssertionError, match=r"9\.9 times"):
                rates.main(["--ablation", "0"])
        else:
            rates.main(["--ablation", "0"])


def test_a_missed_fault_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "missed_faults", lambda *arguments: ["the wrong GELU in draw 3"])
    with pytest.raises(AssertionError, match="the wrong GELU in draw 3"):
        rates.main(["--shapes", "1"])


def test_the_recorded_results_are_of_all_shapes_and_fast_enough() -> None:
    result = result_files.read("rates")
    assert (result["shapes"], result["draws"]) == (128, 64)
    assert result["times_the_tutorial"] >= rates.LEAST_SPEEDUP
    assert max(result["largest_residual"].values()) <= POLICIES["outputs"].residual
    assert set(result["undone"]) == set(rates.ABLATIONS)


@pytest.mark.parametrize("name", pages.recorded_names())
def test_a_recorded_page_is_that_of_its_numbers(name: str) -> None:
    assert (result_files.RESULTS / f"{name}.md").read_text() == pages.page_of(name).text(result_files.read(name))


def test_results_are_written_with_a_line_for_each_row_and_six_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    rows = [{"name": "a", "ms": 1.23456789, "quartiles": [1, 2.00000001]}, {"name": "b", "ms": None, "quartiles": []}]
    result_files.write("x", {"rows": rows, "machine": {"load": (0.1, 0.2)}, "sizes": {"S": {"cp": [1]}}}, "page")
    assert (tmp_path / "x.json").read_text() == (
        """{
  "rows": [
    {"name": "a", "ms": 1.23457, "quartiles": [1, 2.0]},
    {"name": "b", "ms": null, "quartiles": []}
  ],
  "machine": {"load": [0.1, 0.2]},
  "sizes": {
    "S": {"cp": [1]}
  }
}
"""
    )
    assert (tmp_path / "x.md").read_text() == "page"
    assert result_files.read("x")["machine"] == {"load": [0.1, 0.2]}


def _conversion(over_cp: float, faster: float, memory: float) -> dict[str, Any]:
    size = {"over_cp": [0, over_cp, 9], "script_over_ours": [0, faster, 9], "memory_MB": {"mixer-equiv": memory}}
    return {"sizes": {"L/16": size}}


@pytest.mark.parametrize(
    ("run", "met"),
    [
        (_conversion(2.0, 3.0, 200), [True, True, True]),
        (_conversion(2.1, 3.0, 200), [False, True, True]),
        (_conversion(2.0, 2.9, 200), [True, False, True]),
        (_conversion(2.0, 3.0, 201), [True, True, False]),
    ],
)
def test_targets_of_conversion_are_met_or_not(run: dict[str, Any], met: list[bool]) -> None:
    assert list(conversion.check_targets(run).values()) == met


def test_a_command_that_fails_stops_the_benchmark_of_conversion() -> None:
    assert processes.ProcessRun(processes.python_command("bytearray(30_000_000)")).memory > 30e6
    assert processes.ProcessRun(["true"]).memory < 25e6  # although this process has far more
    with pytest.raises(AssertionError):
        processes.ProcessRun(processes.python_command("raise SystemExit(3)"))


@pytest.mark.parametrize("fault", [None, "name", "value"])
def test_a_wrongly_converted_file_stops_the_benchmark(tmp_path: Any, fault: str | None) -> None:
    config = SMALL.replace(num_blocks=2)
    np.savez(tmp_path / "x.npz", **{n: a.astype(np.float32) for n, a in random_params(config, 0).items()})
    processes.ProcessRun(processes.python_command(conversion.SCRIPT, tmp_path / "x.npz", tmp_path / "script"))
    state = convert(load(tmp_path / "x.npz", config=config), to="torch")
    if fault == "value":
        state.arrays["blocks.1.channel_mixing.dense_1.weight"][1, 2] += 1e-6
    save(state, tmp_path / "ours.safetensors", rename_prefix={"head.": "fc."} if fault == "name" else None)
    command = processes.python_command(conversion.COMPARE, tmp_path / "ours.safetensors", tmp_path / "script")
    if fault is None:
        processes.ProcessRun(command)
    else:
        with pytest.raises(AssertionError):
            processes.ProcessRun(command)


# The parts of a Mixer's time


def test_the_products_whose_time_is_told_are_all_that_a_model_has_but_the_heads() -> None:
    config = MixerConfig.from_name("S/32")
    operations = sum(rows * out * width for rows, out, width in breakdown.matrix_products(config, 3))
    assert operations == 3 * (config.macs - config.hidden_dim * config.num_classes)


def test_parts_of_a_models_time_are_measured_and_a_wrong_model_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = breakdown.measure(Cell(SMALL, batch=2), 10)
    assert set(measured["ms"]) == set(breakdown.PARTS)
    assert all(0 < low <= median <= high for low, median, high in measured["ms"].values())
    monkeypatch.setitem(fused_onednn.POST_OPS, "gelu_tanh", fused_onednn.POST_OPS["gelu"])
    monkeypatch.setattr(torch_activations, "_CUBIC", 0.0448)
    with pytest.raises(AssertionError, match="inexact: its error in float32"):
        breakdown.make_calls(Cell(SMALL, batch=2))


def test_token_mixing_is_timed_in_every_formulation_that_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixing.measure(SMALL, 1, 10)
    assert {(row["framework"], row["tokens"]) for row in rows} == set(
        itertools.product(mixing.TIMED_FRAMEWORKS, TOKENS_CHOICES)
    )
    assert all(row["times_linear"] == [1, 1, 1] for row in rows if row["tokens"] == "linear")
    shared = torch_formulations.TOKEN_MIXINGS["shared_conv"]
    wrong = shared._replace(operation=lambda x, layer: 1.0001 * shared.operation(x, layer))  # the fused one is right
    monkeypatch.setattr(fast_mlp, "choose_path", lambda *_: "blas")
    monkeypatch.setitem(torch_formulations.TOKEN_MIXINGS, "shared_conv", wrong)
    with pytest.raises(AssertionError, match=r"shared_conv in torch is .* from the linear formulation"):
        mixing.measure(SMALL, 1, 10)


# The jobs for a GPU


def test_the_plan_for_a_gpu_has_every_program_that_runs_there_in_less_than_six_minutes() -> None:
    timed = list(gpu.TIMINGS.values())
    assert sum(job.share for job in gpu.JOBS.values()) <= 1
    assert gpu.SECONDS < 360
    assert {name for each in timed for name in each.contestants} >= {
        *("torch", "timm", "torch compiled", "timm compiled", "torch graphed", "timm graphed", "flax"),
    }
    assert all(len({CONTESTANTS[name].framework for name in each.contestants}) == 1 for each in timed)
    axes = {(cell.config.name, cell.dtype, cell.batch) for each in timed for cell in each.cells()}
    assert axes == set(itertools.product(gpu.GPU_VARIANTS, gpu.GPU_DTYPES, gpu.GPU_BATCHES))


@pytest.mark.parametrize("name", ["torch graphed", "flax"])
def test_a_program_for_a_gpu_is_built_without_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = gpu.Timings((name,), variants=("S/32",), dtypes=("tf32", "float16"), batches=(3,))
    assert [shape for *_, shape in gpu.build(timed._replace(batches=(1,)))] == [(1, 1000)] * 2
    other = dataclasses.replace(CONTESTANTS[name], make=lambda config, how: real(config.replace(num_classes=3), how))
    real = CONTESTANTS[name].make
    monkeypatch.setitem(CONTESTANTS, name, other)
    with pytest.raises(Exception, match=r"torch graphed in S/32, tf32, batch 1, cuda, inference: \(1, 3\)|\(512, 3\)"):
        list(gpu.build(timed._replace(batches=(1,))))


def test_a_step_on_a_gpu_that_fails_or_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeping, failing = (
        gpu.Job(1.0, gpu.PythonCommand(("-c", code))) for code in ("while True: pass", "raise SystemExit(3)")
    )
    monkeypatch.setattr(gpu, "JOBS", {"sleeping": sleeping, "failing": failing})
    assert gpu.run_job("sleeping", 1.0) == "stopped after 1 s"
    assert gpu.run_job("failing", 60.0).startswith("failed, exit status 3, ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "run_job", lambda name, seconds: "failed, exit status 3, 1 s")
    assert gpu.main([]) == 1
    monkeypatch.setattr(gpu, "run_job", lambda name, seconds: "done, 1 s")
    assert gpu.main([]) == 0


def test_without_a_gpu_nothing_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    assert "finds no CUDA device; --dry-run builds everything without one" in capsys.readouterr().err


def test_what_a_gpu_gave_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    result = export.to_dict(
        measure_cells([Cell(SMALL, batch=batch) for batch in (2, 3)], [Entry("torch")], gemm=32, seconds=0)
    )
    assert result["left_out"] == [str(Cell(SMALL, batch=batch)) for batch in (2, 3)]
    gpu.write("torch", result)
    assert result_files.read("gpu_torch") == result_files.rounded(json.loads(json.dumps(result)))
    assert "note: left out, as there was no time: custom" in (tmp_path / "gpu_torch.md").read_text()
