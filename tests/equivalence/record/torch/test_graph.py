"""A recorded graph of a torch model is the model: on other parameters and inputs it gives the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixer_equiv.equivalence.record.graph import Graph, Node, Setting
from mixer_equiv.equivalence.record.torch.evaluation import evaluate
from mixer_equiv.equivalence.record.torch.nested_tensors import result_tensors
from mixer_equiv.equivalence.record.torch.run import record_graph
from mixer_equiv.equivalence.sides.locate import import_timm
from tests.support.graph_files import assert_same, assert_same_bits, read_again
from tests.support.sizes import CONFIG
from tests.support.structures import PortMixer


def floats_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, but for counts."""
    held = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in held if tensor.is_floating_point()}


def draw_with(seed: int) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) / 4
        return np.abs(drawn) + 0.1 if name.endswith("running_var") else drawn

    return draw


def fresh(inputs: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Other inputs of the same shapes; whole numbers stay."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.standard_normal(tuple(given.shape))) if given.is_floating_point() else given
        for name, given in inputs.items()
    }


def run(module: nn.Module, parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own outputs by path, with these parameters, in float64."""
    module = module.double()
    positional = [inputs[name] for name in sorted(inputs) if name.isdecimal()]
    keywords = {name: given for name, given in inputs.items() if not name.isdecimal()}
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            result = torch.func.functional_call(module, dict(parameters), tuple(positional), keywords)
    finally:
        torch.set_default_dtype(torch.float32)
    return dict(result_tensors(result))


def assert_is_the_model(module: nn.Module, inputs: Mapping[str, Tensor]) -> Graph:
    """Assert that a recorded graph gives a model's outputs, and after its way through a file the same bits."""
    module.eval()
    held = floats_of(module)
    graph = record_graph(module, inputs, draw_with(0), names=held)
    read = read_again(graph)
    assert_same(graph, read)
    parameters = {name: torch.from_numpy(draw_with(1)(name, tuple(tensor.shape))) for name, tensor in held.items()}
    others = fresh(inputs, 2)
    with torch.no_grad():
        made = evaluate(graph, parameters, others)
        saved = evaluate(read, parameters, others)
    assert_same_bits(made, saved)
    expected = run(module, parameters, others)
    assert made.keys() == expected.keys()
    for path, output in expected.items():
        torch.testing.assert_close(made[path], output, rtol=1e-12, atol=1e-12)
    return graph


IMAGES = {"0": torch.zeros(2, 3, 64, 64)}
TIMM = {
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "resnet10t": {},
    "convnext_atto": {"depths": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "depths": (1, 2, 1, 1)},
}
# Models of one class, with many blocks, of which two are kept.
OF_MIXERS = ("mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "gmixer_12_224")


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_run_again(name: str) -> None:
    graph = assert_is_the_model(import_timm().create_model(name, **TIMM[name]), IMAGES)
    assert set(graph.inputs) == {"0"}
    assert len(graph.parameters) > 20


@pytest.mark.parametrize("name", OF_MIXERS)
def test_mlps_of_timm_run_again(name: str) -> None:
    model = import_timm().create_model(name, img_size=64)
    model.blocks = model.blocks[:2]
    assert len(assert_is_the_model(model, IMAGES).parameters) > 15


class Encoder(nn.Module):
    """Writes down what BERT does: embeddings of words, positions and kinds, a mask that is added, and a pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.kinds = nn.Embedding(10, 6), nn.Embedding(8, 6), nn.Embedding(2, 6)
        self.q, self.k, self.v, self.pooler = (nn.Linear(6, 6) for _ in range(4))
        self.norm = nn.LayerNorm(6, eps=1e-12)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        mask = (1.0 - (ids != 0)[:, None, None, :].to(self.q.weight.dtype)) * torch.finfo(self.q.weight.dtype).min
        positions = torch.arange(ids.shape[1])[None].expand(ids.shape)
        x = self.norm(self.words(ids) + self.positions(positions) + self.kinds(torch.zeros_like(ids)))
        q, k, v = (layer(x).view(*ids.shape, 2, 3).permute(0, 2, 1, 3) for layer in (self.q, self.k, self.v))
        weights = nn.functional.softmax(q @ k.transpose(-1, -2) / 3**0.5 + mask, -1)
        x = x + (weights @ v).permute(0, 2, 1, 3).contiguous().view(x.shape)
        return {"last_hidden_state": x, "pooler_output": torch.tanh(self.pooler(x[:, 0]))}


class Decoder(nn.Module):
    """Writes down what GPT-2 and Llama do: causal masks, rotary positions, grouped heads, RMSNorm and gated layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fused, self.keys = nn.Embedding(10, 8), nn.Linear(8, 24), nn.Linear(8, 4, bias=False)
        self.gate, self.up, self.scale = nn.Linear(8, 9), nn.Linear(8, 9), nn.Parameter(torch.ones(8))

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        x = self.words(ids)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        tokens = ids.shape[1]
        angles = torch.outer(torch.arange(float(tokens)), 10000 ** (-torch.arange(0, 4, 2) / 4))
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        q = x.unflatten(-1, (2, 4)).transpose(1, 2)
        q = q * cos + torch.cat([-q[..., 2:], q[..., :2]], -1) * sin
        k = self.keys(x)[:, None].expand(-1, 2, -1, -1)
        causal = torch.tril(torch.ones(tokens, tokens, dtype=torch.bool))
        y = nn.functional.scaled_dot_product_attention(q, k, q, attn_mask=causal & mask[:, None, None])
        scores = (q @ k.mT).masked_fill(~causal, float("-inf")).softmax(-1)
        scores = torch.where(causal, scores, torch.finfo(scores.dtype).min)
        z = nn.functional.silu(self.gate(x)) * self.up(x)
        turned = torch.view_as_complex(x.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones(4), angles[0, :1])
        first, *_ = self.fused(x).split(8, dim=-1)
        return y, scores, z, torch.view_as_real(turned), first[torch.arange(2), -1], first.gather(1, ids[..., None] % 3)


def test_transformers_run_again() -> None:
    ids = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 0]])
    graph = assert_is_the_model(Encoder(), {"0": ids})
    assert {"aten.embedding.default", "aten._softmax.default"} <= {node.operation for node in graph.nodes}
    graph = assert_is_the_model(Decoder(), {"0": ids, "mask": ids != 0})
    assert {"aten.rsqrt.default", "aten.masked_fill.Scalar"} <= {node.operation for node in graph.nodes}


def test_a_mixer_runs_again_and_knows_its_places() -> None:
    (height, width), channels = CONFIG.image_hw, CONFIG.in_channels
    graph = assert_is_the_model(PortMixer(CONFIG), {"0": torch.zeros(2, channels, height, width)})
    activations = [node for node in graph.nodes if node.operation.startswith("aten.gelu")]
    assert len(activations) == 2 * CONFIG.num_blocks
    assert activations[0].place is not None
    assert activations[0].place.file.endswith(".py")
    assert activations[0].keywords == {"approximate": "tanh"}


class Writing(nn.Module):
    """Writes into its arrays through views of every kind, and takes a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.register_buffer("position", torch.ones(4, 5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        y = self.layer(x)
        out = torch.zeros(2, 4, 5)
        out[:, 1:3] = y[:, 1:3]
        out[:, 0].add_(self.position[0])
        columns = out.transpose(1, 2)
        columns[:, 2] *= 2
        flat = y.view(-1)
        flat[3:7] += 1
        y.relu_()
        if mask is not None:
            out.masked_fill_(mask[..., None], -3.0)
        out.mul_(y)
        return {"out": out, "both": (columns.sum(1), flat)}


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_written_through_views_runs_again(masked: bool) -> None:
    mask = {"mask": torch.tensor([[True, False, True, False], [False, False, False, True]])}
    graph = assert_is_the_model(Writing(), {"0": torch.zeros(2, 4, 5), **(mask if masked else {})})
    assert set(graph.outputs) == {"['out']", "['both'][0]", "['both'][1]"}


def test_arguments_of_torch_are_plain_data() -> None:
    graph = assert_is_the_model(Writing(), {"0": torch.zeros(2, 4, 5)})
    settings = {leaf for node in graph.nodes for leaf in node.keywords.values() if isinstance(leaf, Setting)}
    assert {setting.kind for setting in settings} <= {"dtype", "layout", "device", "memory_format"}
    assert not [node for node in graph.nodes if "zeros" in node.operation]  # constants are given as they are


def test_another_argument_is_another_function() -> None:
    module = PortMixer(CONFIG).eval()
    (height, width), channels = CONFIG.image_hw, CONFIG.in_channels
    inputs = {"0": torch.ones(1, channels, height, width, dtype=torch.float64)}
    graph = record_graph(module, inputs, draw_with(0))
    parameters = {n: torch.from_numpy(draw_with(0)(n, tuple(p.shape))) for n, p in module.named_parameters()}
    expected = evaluate(graph, parameters, inputs)[""]
    number = next(i for i, node in enumerate(graph.nodes) if node.operation.startswith("aten.gelu"))
    node = graph.nodes[number]
    other = Node(node.operation, node.shapes, node.arguments, {"approximate": "none"}, is_data=True)
    changed = Graph((*graph.nodes[:number], other, *graph.nodes[number + 1 :]), *_rest(graph))
    assert (evaluate(changed, parameters, inputs)[""] - expected).abs().max() > 1e-8


def _rest(graph: Graph) -> tuple[Any, Any, Any]:
    return graph.inputs, graph.parameters, graph.outputs


def test_a_parameter_that_reaches_a_call_is_known() -> None:
    graph = record_graph(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), {"0": torch.zeros(2, 3)}, draw_with(0))
    linear = next(node for node in graph.nodes if not node.is_given and node.parameters and node.is_data)
    assert linear.parameters == {"0.weight", "0.bias"}
    assert {number for number, node in enumerate(graph.nodes) if node.is_data} <= {*graph.needed()}


def test_inputs_that_are_one_tensor_are_told_apart() -> None:
    class Difference(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x - 2 * y

    same = torch.ones(2, 3)
    graph = record_graph(Difference(), {"0": same, "1": same}, draw_with(0))
    made = evaluate(graph, {}, {"0": torch.full((2, 3), 5.0), "1": torch.ones(2, 3)})
    assert torch.equal(made[""], torch.full((2, 3), 3.0))


class WithoutTheWhole(nn.Module):
    """Writes into the second half of memory whose first half it never takes."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.arange(8.0)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.held[4:]
        halves.view(2, 2)[0] = x[0]
        return halves * x.sum()


def test_a_part_of_memory_that_is_written_into_runs_again() -> None:
    graph = record_graph(WithoutTheWhole(), {"0": torch.ones(2, 2)}, draw_with(0))
    given = torch.tensor([[2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)
    assert evaluate(graph, {}, {"0": given})[""].tolist() == [28.0, 42.0, 84.0, 98.0]
