"""Correctness: right calls are timed, and wrong ones are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import torch

from mixer_equiv import Formulation, MixerConfig
from mixer_equiv.bench.calls import batch_order, draw_inputs, make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import CONTESTANTS, Contestant, Entry
from mixer_equiv.bench.correctness import Checker, Correctness
from mixer_equiv.bench.measurement import BASELINE_AGAIN, EntryTiming, Refusal, fresh_compiler_for, measure_cells
from mixer_equiv.models.flax import activations as jax_activations
from mixer_equiv.models.torch import activations as torch_activations
from mixer_equiv.models.torch import fast_mlp, fused_onednn
from mixer_equiv.models.torch import packed as torch_packed
from mixer_equiv.models.torch import packed_blas as torch_packed_blas
from mixer_equiv.models.torch import packed_onednn as torch_packed_onednn
from mixer_equiv.models.torch.fast_mlp import multiplies_bfloat16
from mixer_equiv.models.torch.kernel_choice import KERNELS
from tests.support.cells import EAGER, JITTED, SMALL, small_bench


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


@pytest.mark.parametrize("mode", [pytest.param("inference", marks=pytest.mark.soundness), "training"])
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
    """Put a slightly different GELU into these kernels of ours, and have them used."""
    by_dtype = {torch.float32: kernels, torch.bfloat16: "float32" if kernels == "blas" else kernels}
    monkeypatch.setattr(fast_mlp, "choose_path", lambda mixing, dtype, *_: by_dtype[dtype])
    monkeypatch.setattr(torch_packed, "kernels_for", lambda *arguments: kernels)
    monkeypatch.setattr(torch_activations, "_CUBIC", 0.0448)
    monkeypatch.setitem(fused_onednn.POST_OPS, "gelu_tanh", fused_onednn.POST_OPS["gelu"])


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
    monkeypatch.setattr(torch_packed_onednn, "copy_norm", _with_eps)
    monkeypatch.setattr(torch_packed_blas, "copy_norm", _with_eps)
    refused = proven(Checker(4), Entry("torch packed"), Cell(SMALL, dtype, 3)).refused
    assert refused is not None
    assert refused.startswith("inexact: its error in float32 is")


@pytest.mark.parametrize("mode", ["inference", pytest.param("training", marks=pytest.mark.soundness)])
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
    """The GELU, but in half precision only `part` of its gradient."""

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
    """The GELU in JAX; its derivative, defined below, has the same fault."""
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
