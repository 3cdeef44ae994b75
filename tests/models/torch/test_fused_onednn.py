"""The fast paths of an MLP compute the same as its layers, and are taken only where nobody could tell."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from mixer_equiv.config import ACTIVATION_NAMES
from mixer_equiv.models.torch import MlpBlock, fast_mlp, fused_onednn
from mixer_equiv.models.torch import activations as torch_activations
from mixer_equiv.models.torch import formulations as torch_formulations
from mixer_equiv.models.torch import model as models
from mixer_equiv.models.torch.activations import ACTIVATIONS
from mixer_equiv.models.torch.fast_mlp import FAST_DTYPES, choose_path
from mixer_equiv.models.torch.replacement_layers import Mixing, MixingLinear

FUSED = sorted(fused_onednn.POST_OPS)
LINEAR = torch_formulations.TOKEN_MIXINGS["linear"]
MIXINGS = {
    "linear": LINEAR,
    "matmul": torch_formulations.TOKEN_MIXINGS["matmul"],
    "depthwise_conv": torch_formulations.TOKEN_MIXINGS["depthwise_conv"],
    "shared_conv": torch_formulations.TOKEN_MIXINGS["shared_conv"],
    "conv1d of tokens": torch_formulations.TOKEN_MIXINGS["conv1d"],
    "conv1d of channels": torch_formulations.CHANNEL_MIXINGS["conv1d"],
}

WITH_FUSED = [name for name, mixing in MIXINGS.items() if mixing.fused]
WITH_FUSED_CONVOLUTION = [name for name in WITH_FUSED if name != "linear"]


def supported(mixing: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN has the fused operation of this mixing on this processor."""
    given = MIXINGS[mixing]
    return given.fused is not None and all(
        fused_onednn.supports(given.fused, given.axis, dtype, name) for name in (*FUSED, None)
    )


CASES = [
    pytest.param(way, mixing, dtype, id=f"{way}, {mixing}, {dtype}")
    for mixing in MIXINGS
    for dtype in FAST_DTYPES
    for way in ("blas", "float32", "onednn")
    if way != "onednn" or supported(mixing, dtype)
]


def block(
    activation: str = "gelu_tanh", dtype: torch.dtype = torch.float32, mixing: Mixing = LINEAR, mlp_dim: int = 29
) -> MlpBlock:
    torch.manual_seed(7)
    made = MlpBlock(13, mlp_dim, activation)
    torch_formulations.set_mixing(made, mixing)
    made.to(dtype).eval()
    for value in made.parameters():
        nn.init.normal_(value, std=0.4)
    return made.requires_grad_(False)


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 2 * torch.randn(3, 5, 13, generator=torch.Generator().manual_seed(8)).to(dtype)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]


def along(made: MlpBlock, x: torch.Tensor, axis: int) -> torch.Tensor:
    """The MLP over one of the last two axes, as a Mixer calls it."""
    return made(x) if axis == -1 else made(x.mT).mT


def errors(made: MlpBlock, x: torch.Tensor, axis: int) -> tuple[float, ...]:
    """Errors of the fused and of the plain path, relative to float64."""
    taken = along(made, x, axis)
    with without_onednn():
        plain = along(made, x, axis)
    truth = along(copy.deepcopy(made).double(), x.double(), axis)
    return tuple(float((y.double() - truth).norm() / truth.norm()) for y in (taken, plain))


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small MLPs take the fast paths."""
    monkeypatch.setattr(fast_mlp, "MIN_ELEMENTS", dict.fromkeys(fast_mlp.MIN_ELEMENTS, 1))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the activation of every MLP that takes a fast path."""
    seen: list[str] = []
    original = fast_mlp.infer

    def infer(x: Any, layers: Any, activation: str) -> torch.Tensor | None:
        result = original(x, layers, activation)
        seen.extend([] if result is None else [activation])
        return result

    monkeypatch.setattr(models, "infer", infer)
    return seen


def force(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(fast_mlp, "choose_path", lambda *_: way)


def test_every_mixing_is_tested() -> None:
    tables = torch_formulations.TOKEN_MIXINGS, torch_formulations.CHANNEL_MIXINGS
    assert {mixing for table in tables for mixing in table.values()} == set(MIXINGS.values())


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize(("way", "mixing", "dtype"), CASES)
@pytest.mark.parametrize("mlp_dim", [29, 13], ids=["oblong", "square"])
def test_every_way_is_as_exact_as_the_layers(
    mlp_dim: int,
    way: str,
    mixing: str,
    activation: str,
    dtype: torch.dtype,
    axis: int,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "onednn" and activation not in FUSED:
        way = "blas"
    force(monkeypatch, way)
    given = images(dtype) if axis == -1 else images(dtype).mT
    for x in (given.contiguous(), given.mT.contiguous().mT, given.expand(2, *given.shape)[1]):
        fused, plain = errors(block(activation, dtype, MIXINGS[mixing], mlp_dim), x, axis)
        assert calls == [activation]
        assert 0 < fused <= 4 * plain
        assert fused < {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
        calls.clear()


def test_pieces_of_an_activation_in_place_join(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "blas")
    for piece in (1, 30, 64, 2**17):
        monkeypatch.setattr(torch_activations, "CACHED_ELEMENTS", piece)
        taken, plain = errors(block(), images(), -1)
        assert 0 < taken <= 4 * plain


def test_the_gelu_in_place_is_exact_everywhere() -> None:
    x = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e5, -1e5, 3e38, -3e38])])
    expected = ACTIVATIONS["gelu_tanh"](x.double())
    found = torch_activations.activate(x.clone(), "gelu_tanh")
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-12)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    found = torch_activations.activate(odd.clone(), "gelu_tanh")
    assert torch.allclose(found, ACTIVATIONS["gelu_tanh"](odd), equal_nan=True)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("activation", FUSED)
def test_each_value_in_bfloat16_is_that_of_this_activation(activation: str, mixing: str, calls: list[str]) -> None:
    made = block(activation, torch.bfloat16, MIXINGS[mixing], mlp_dim=13)
    for layer in (made.dense_0, made.dense_1):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.linspace(-4, 4, 3 * 5 * 13).to(torch.bfloat16).view(3, 5, 13)
    expected = ACTIVATIONS[activation](x.double())
    assert torch.allclose(made(x).double(), expected, rtol=2**-7, atol=0)
    assert calls == [activation]


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
def test_nan_stays_nan(activation: str, mixing: str) -> None:
    made, x = block(activation, mixing=MIXINGS[mixing]), images()
    x[1, 2, 3] = torch.nan
    with without_onednn():
        expected = made(x).isnan()
    assert expected.any()
    assert not expected.all()
    assert torch.equal(made(x).isnan(), expected)


@pytest.mark.parametrize("mixing", WITH_FUSED)
def test_weights_and_biases_may_lie_in_memory_as_they_please(mixing: str, calls: list[str]) -> None:
    for change, fused in (
        (lambda layer: setattr(layer.weight, "data", layer.weight.t().contiguous().t()), True),
        (lambda layer: setattr(layer.weight, "data", layer.weight.repeat_interleave(2, 1)[:, ::2]), True),
        (lambda layer: setattr(layer.bias, "data", layer.bias.repeat_interleave(2)[::2]), False),
        (lambda layer: setattr(layer.bias, "data", torch.tensor([0.5]).expand(layer.bias.shape)), False),
        (lambda layer: setattr(layer.bias, "data", torch.tensor([0.5, 7.0])[:1].expand(layer.bias.shape)), False),
    ):
        made = block(mixing=MIXINGS[mixing])
        change(made.dense_0)
        taken, plain = errors(made, images(), -1)
        assert 0 < taken <= 4 * plain
        assert bool(calls) == fused
        calls.clear()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_widths_are_those_of_the_weights(mixing: str, calls: list[str]) -> None:
    made = block(mixing=MIXINGS[mixing])
    for layer in (made.dense_0, made.dense_1):
        rows, columns = (slice(11), slice(None)) if layer is made.dense_0 else (slice(None), slice(11))
        layer.weight = nn.Parameter(layer.weight[rows, columns].clone(), requires_grad=False)
    made.dense_0.bias = nn.Parameter(made.dense_0.bias[:11].clone(), requires_grad=False)
    taken, plain = errors(made, images(), -1)
    assert 0 < taken <= 4 * plain
    assert calls == ["gelu_tanh"]


def test_another_gelu_in_the_fused_path_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "onednn")
    monkeypatch.setitem(fused_onednn.POST_OPS, "gelu_tanh", fused_onednn.POST_OPS["gelu"])
    fused, plain = errors(block(), images(), -1)
    assert fused > 100 * plain


def test_another_gelu_in_place_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "blas")
    monkeypatch.setattr(torch_activations, "_CUBIC", 0.0448)
    taken, plain = errors(block(), images(), -1)
    assert taken > 10 * plain


def test_what_is_not_fused_goes_by_plain_products() -> None:
    assert set(ACTIVATION_NAMES) - set(FUSED) == {"quick_gelu", "relu"}
    assert (
        choose_path(LINEAR, torch.float32, "quick_gelu", 9)
        == choose_path(MIXINGS["matmul"], torch.float32, "gelu", 9)
        == "blas"
    )


def test_the_layers_of_small_mlps_are_called(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = block(), images()
    elements = x.numel() // x.shape[-1] * len(made.dense_0.weight)
    for least, fast in ((elements, True), (elements + 1, False)):
        monkeypatch.setattr(fast_mlp, "MIN_ELEMENTS", dict.fromkeys(fast_mlp.MIN_ELEMENTS, least))
        made(x)
        assert bool(calls) == fast
        calls.clear()


def test_both_mlps_of_a_block_go_a_fast_way(calls: list[str]) -> None:
    made = models.MixerBlock(5, 13, 7, 29).eval().requires_grad_(False)
    torch_formulations.set_mixing(made.token_mixing, MIXINGS["matmul"])
    made(images())
    assert calls == ["gelu_tanh", "gelu_tanh"]


@pytest.mark.parametrize("mixing", WITH_FUSED_CONVOLUTION)
def test_filters_from_the_end_would_be_seen(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, "onednn")
    convolution: Any = fused_onednn._CONVOLUTION_POINTWISE
    monkeypatch.setattr(
        fused_onednn, "_CONVOLUTION_POINTWISE", lambda x, weight, *rest: convolution(x, weight.flip(0), *rest)
    )
    fused, plain = errors(block(mixing=MIXINGS[mixing]), images(), -1)
    assert fused > 1000 * plain


def test_a_batch_of_no_images_is_one(calls: list[str]) -> None:
    for mixing in MIXINGS.values():
        assert block(mixing=mixing)(images()[:0]).shape == (0, 5, 13)
    assert calls == []


# Where the fast paths are not taken

Change = Callable[[MlpBlock], Any]


def _hooked(made: MlpBlock) -> Any:
    made.dense_0.register_forward_hook(lambda module, given, output: None)


def _hooked_before(made: MlpBlock) -> Any:
    made.dense_1.register_forward_pre_hook(lambda module, given: None)


def _hooked_everywhere(made: MlpBlock) -> Any:
    return nn.modules.module.register_module_forward_hook(lambda module, given, output: None)


def _hooked_before_everywhere(made: MlpBlock) -> Any:
    return nn.modules.module.register_module_forward_pre_hook(lambda module, given: None)


@contextlib.contextmanager
def _other_linear() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        original = nn.Linear.forward
        patch.setattr(nn.Linear, "forward", lambda self, x: original(self, x))
        yield


def _of_a_subclass(made: MlpBlock) -> Any:
    class Parameter(nn.Parameter):
        pass

    made.dense_0.bias = Parameter(made.dense_0.bias, requires_grad=False)


def _trained(made: MlpBlock) -> Any:
    made.dense_1.weight.requires_grad_(True)


def _normed(made: MlpBlock) -> Any:
    weight_norm(made.dense_0)
    made.requires_grad_(False)


def _other_class(made: MlpBlock) -> Any:
    class Linear(nn.Linear):
        pass

    made.dense_0.__class__ = Linear


def _other_forward(made: MlpBlock) -> Any:
    made.dense_0.forward = made.dense_0.forward  # type: ignore[method-assign]


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


NOT_FUSED: dict[str, Change] = {
    "a hook on a layer": _hooked,
    "a hook before a layer": _hooked_before,
    "a hook on all modules": _hooked_everywhere,
    "a hook before all modules": _hooked_before_everywhere,
    "a forward of all layers": lambda made: _other_linear(),
    "a bias of a subclass": _of_a_subclass,
    "a weight that is trained": _trained,
    "a weight that is computed": _normed,
    "a layer of another class": _other_class,
    "a layer with a forward of its own": _other_forward,
    "a mode of dispatch": lambda made: _Mode(),
    "a mode of functions": lambda made: torch.device("cpu"),
    "autocast": lambda made: torch.autocast("cpu", torch.bfloat16),
    "oneDNN switched off": lambda made: without_onednn(),
    "float64": lambda made: made.double() and None,
}


@pytest.mark.parametrize("name", NOT_FUSED)
def test_the_plain_path_is_taken_with(name: str, calls: list[str]) -> None:
    made = block()
    expected = made(images())
    assert calls == ["gelu_tanh"]
    context = NOT_FUSED[name](made)
    try:
        with context if hasattr(context, "__enter__") else contextlib.nullcontext():
            output = made(images(next(made.parameters()).dtype))
    finally:
        if hasattr(context, "remove"):
            context.remove()
    assert calls == ["gelu_tanh"]
    if name == "autocast":  # it rounds to bfloat16, which has 8 bits
        assert torch.linalg.norm(output.float() - expected) <= 2**-7 * torch.linalg.norm(expected)
    else:
        assert torch.allclose(output.float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixing", sorted(set(MIXINGS) - {"linear"}))
def test_layers_that_are_mixed_by_something_else_are_called(mixing: str, calls: list[str]) -> None:
    made = block(mixing=MIXINGS[mixing])
    expected, original = made(images()), MIXINGS[mixing]
    assert isinstance(made.dense_0, MixingLinear)
    made.dense_0.mixing = original._replace(operation=lambda x, layer: original.operation(2 * x, layer))
    assert not torch.allclose(made(images()), expected)
    assert calls == ["gelu_tanh"]


def test_one_bias_for_all_values_is_added_to_each(calls: list[str]) -> None:
    made = block()
    made.dense_0.bias.data = made.dense_0.bias[:1].clone()
    taken, plain = errors(made, images(), -1)
    assert (taken, calls) == (plain, [])


def test_the_plain_path_is_taken_where_images_are_differentiated_or_mapped(calls: list[str]) -> None:
    made = block()
    x = images().requires_grad_()
    made(x).sum().backward()
    assert x.grad is not None
    torch.vmap(made)(images())
    assert calls == []
    with torch.no_grad():
        made(x)
    assert calls == ["gelu_tanh"]


def test_hooks_see_what_they_would(calls: list[str]) -> None:
    made, seen = block(), []
    made.dense_0.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    made(images())
    assert seen == [(3, 5, 29)]


def test_what_is_compiled_is_the_plain_path_in_one_graph(calls: list[str]) -> None:
    made = block()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    expected = made(images())
    assert calls == ["gelu_tanh"]
    assert torch.allclose(compiled(images()), expected, rtol=0, atol=1e-5)
    assert calls == ["gelu_tanh"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own, in its forward mode
@pytest.mark.parametrize("grad", [True, False])
def test_tangents_of_forward_mode_are_those_of_the_plain_path(grad: bool) -> None:
    made, x = block(), images()
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        taken = forward_ad.unpack_dual(made(dual)).tangent
        with without_onednn():
            plain = forward_ad.unpack_dual(made(dual)).tangent
    assert taken is not None
    assert torch.equal(taken, plain)
