"""Nothing is assumed of a processor: operations that do not work on this one are replaced, and the user is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mixer_equiv import ConfigError, Formulation
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.models.torch import fast_mlp, fused_onednn, kernel_choice
from mixer_equiv.models.torch import packed as torch_packed
from mixer_equiv.models.torch import packed_onednn as torch_packed_onednn
from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.fast_mlp import FAST_DTYPES, choose_path, multiplies_bfloat16
from mixer_equiv.models.torch.formulations import TOKEN_MIXINGS
from mixer_equiv.models.torch.kernel_choice import agrees, instruction_set, preferred_kernels
from mixer_equiv.models.torch.packed import kernels_for
from tests.support.small_torch import EPSILON, SHALLOW, error
from tests.support.small_torch import shallow_images as images
from tests.support.small_torch import shallow_mixer as mixer

LINEAR = TOKEN_MIXINGS["linear"]


def forget() -> None:
    """Forget which operations work on this processor, so that they are tried again."""
    for tried in (fused_onednn.supports, torch_packed_onednn.packs, fast_mlp._path_of_large):
        tried.cache_clear()


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small MLPs take the fast paths."""
    monkeypatch.setattr(fast_mlp, "MIN_ELEMENTS", dict.fromkeys(fast_mlp.MIN_ELEMENTS, 1))


@pytest.fixture
def anew() -> Iterator[None]:
    """Nothing is known of the processor before the test, and nothing learnt in it is kept."""
    forget()
    yield
    forget()


def _fails(*_: Any) -> Any:
    raise RuntimeError("could not create a primitive descriptor for the inner product forward propagation primitive")


class _Wrong:
    """An operation that runs, and gives other numbers."""

    def __init__(self, real: Any) -> None:
        self.real, self.binary = real, lambda *arguments: 2 * real.binary(*arguments)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        return self.real(*arguments) * 1.1


BROKEN = {
    "raises": lambda real: _fails,
    "is missing": lambda real: None,
    "computes something else": _Wrong,
}


@pytest.fixture(params=BROKEN)
def no_onednn(request: pytest.FixtureRequest, anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Break every operation of oneDNN that this package calls by name."""
    for module, names in (
        (fused_onednn, ("_LINEAR_POINTWISE", "_CONVOLUTION_POINTWISE")),
        (torch_packed_onednn, ("_LINEAR_POINTWISE", "_REORDER_LINEAR_WEIGHT")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, BROKEN[request.param](getattr(module, name)))


# Where oneDNN does not work


@pytest.mark.usefixtures("no_onednn")
@pytest.mark.parametrize("dtype", FAST_DTYPES)
@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
def test_every_formulation_computes_without_onednn(formulation: Formulation, dtype: torch.dtype) -> None:
    model, x = mixer(dtype, formulation), images(dtype)
    assert error(model(x), model, x) < EPSILON[dtype]
    assert not multiplies_bfloat16()
    assert choose_path(LINEAR, dtype, "gelu_tanh", 9) == {torch.float32: "blas", torch.bfloat16: "float32"}[dtype]


@pytest.mark.usefixtures("no_onednn")
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_weights_are_packed_without_onednn(dtype: torch.dtype) -> None:
    model, x = mixer(dtype), images(dtype)
    packed = model.packed()
    assert packed.kernels == "blas"
    assert repr(packed) == f"PackedMixer({str(dtype).removeprefix('torch.')}, blas)"
    assert error(packed(x), model, x) < EPSILON[dtype]
    with pytest.raises(ConfigError, match=r"'onednn', which does not multiply .* here .*; use 'blas', or None"):
        model.packed("onednn")


@pytest.mark.usefixtures("anew")
def test_weights_are_packed_without_onednn_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert [kernels_for(dtype) for dtype in FAST_DTYPES] == ["blas", "blas"]


@pytest.mark.usefixtures("no_onednn")
@pytest.mark.parametrize("dtype", FAST_DTYPES)
def test_compiled_models_compute_without_onednn(dtype: torch.dtype) -> None:
    model, x = mixer(dtype), images(dtype)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert error(compiled(x), model, x) < EPSILON[dtype]


@pytest.mark.parametrize("owner", ["_C", "forward_ad", "modules"])
def test_where_torch_does_not_tell_who_watches_the_layers_are_called(
    owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, seen = mixer(torch.float32), images(torch.float32), []
    choose_path = fast_mlp.choose_path
    monkeypatch.setattr(fast_mlp, "choose_path", lambda *arguments: seen.append("fast") or choose_path(*arguments))
    expected = model(x)
    assert len(seen) == 2 * SHALLOW.num_blocks
    monkeypatch.setattr(fast_mlp, owner, SimpleNamespace())
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert len(seen) == 2 * SHALLOW.num_blocks


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("kernels", ["onednn", "blas"])
def test_the_kernels_are_those_that_are_fast_with_these_instructions(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "PREFERRED", {instruction_set(): kernels})
    assert choose_path(LINEAR, torch.float32, "gelu_tanh", 9) == kernels_for(torch.float32) == kernels
    in_half = "onednn" if multiplies_bfloat16() else "blas"
    assert kernels_for(torch.bfloat16) == in_half


# Trying an operation


X, LAYER = fused_onednn.trial_numbers()
EXPECTED = F.linear(X, LAYER.weight, LAYER.bias)


def test_what_agrees_is_the_right_product_of_the_right_shape() -> None:
    assert agrees(EXPECTED.float, EXPECTED)
    assert agrees(EXPECTED.bfloat16, EXPECTED)
    assert not agrees(_fails, EXPECTED)
    assert not agrees(lambda: EXPECTED.bfloat16().float(), EXPECTED)
    assert not agrees(lambda: EXPECTED.mT.float(), EXPECTED)
    assert not agrees(lambda: EXPECTED.float().mul_(torch.nan), EXPECTED)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("activation", fused_onednn.POST_OPS)
def test_another_activation_inside_does_not_agree(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_onednn.supports(fused_onednn.linear, -1, torch.float32, activation)
    forget()
    other = "silu" if activation != "silu" else "gelu"
    monkeypatch.setitem(fused_onednn.POST_OPS, activation, fused_onednn.POST_OPS[other])
    assert not fused_onednn.supports(fused_onednn.linear, -1, torch.float32, activation)
    assert not torch_packed_onednn.packs(torch.float32)


@pytest.mark.usefixtures("anew")
def test_trying_changes_nothing_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for dtype in FAST_DTYPES:
        torch_packed_onednn.packs(dtype)
        for mixing in TOKEN_MIXINGS.values():
            for activation in ACTIVATIONS:
                choose_path(mixing, dtype, activation, 9)
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


def test_something_is_tried_once(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    for module in (fused_onednn, torch_packed_onednn):
        monkeypatch.setattr(module, "agrees", lambda *arguments: bool(tried.append(arguments)) or True)
    for _ in range(2):
        choose_path(LINEAR, torch.bfloat16, "gelu_tanh", 9)
        torch_packed.kernels_for(torch.bfloat16)
        count = len(tried)
    choose_path(LINEAR, torch.bfloat16, "gelu_tanh", 9)
    assert len(tried) == count > 0


# The instruction set


@pytest.mark.parametrize(
    ("found", "variable", "limit", "expected"),
    [
        ("AVX512", None, "", "AVX512"),
        ("AVX512", "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI", "AVX512"),
        ("AVX512", "ONEDNN_MAX_CPU_ISA", "DEFAULT", "AVX512"),
        ("AVX512", "ONEDNN_MAX_CPU_ISA", "avx2_vnni", "AVX2"),
        ("AVX512", "DNNL_MAX_CPU_ISA", "AVX2", "AVX2"),
        ("AVX512", "ONEDNN_MAX_CPU_ISA", "SSE41", "DEFAULT"),
        ("AVX2", "ONEDNN_MAX_CPU_ISA", "SSE41", "DEFAULT"),
        ("DEFAULT", "ONEDNN_MAX_CPU_ISA", "AVX2", "DEFAULT"),
        ("SVE256", "ONEDNN_MAX_CPU_ISA", "AVX2", "SVE256"),
    ],
)
def test_the_instruction_set_is_what_the_environment_leaves(
    found: str, variable: str | None, limit: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, limit)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: found)
    assert instruction_set() == expected
    assert preferred_kernels() == ("onednn" if expected == "AVX512" else "blas")


# Processes in which torch and oneDNN may use fewer instructions than the processor has

LESS = {"avx2": "AVX2", "default": "SSE41"}

INFER = """
import json, sys
import torch
from mixer_equiv import Formulation
from mixer_equiv.formulation import FORMULATIONS
from mixer_equiv.models.torch import fast_mlp
from tests.support.small_torch import EPSILON, error, shallow_images as images, shallow_mixer as mixer

found, fast_mlp.MIN_ELEMENTS = {}, dict.fromkeys(fast_mlp.MIN_ELEMENTS, 1)
for dtype in (torch.float32, torch.bfloat16):
    for formulation in FORMULATIONS:
        model, x = mixer(dtype, formulation), images(dtype)
        assert error(model(x), model, x) < EPSILON[dtype], (dtype, formulation)
    model = mixer(dtype)
    packed = model.packed()
    assert error(packed(x), model, x) < EPSILON[dtype], dtype
    found[str(dtype)] = packed.kernels
print(json.dumps(found))
"""


@pytest.mark.parametrize("level", LESS)
def test_models_run_in_every_dtype_with_fewer_instructions(level: str) -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": level, "ONEDNN_MAX_CPU_ISA": LESS[level]}
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", INFER], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"torch.float32": "blas", "torch.bfloat16": "blas"}
