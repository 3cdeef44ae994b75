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
    module.eval()
    held = floats_of(module)
    graph = record_graph(module, inputs, draw_with(0), names=held)
    parameters = {name: torch.from_numpy(draw_with(1)(name, tuple(tensor.shape))) for name, tensor in held.items()}
    others = fresh(inputs, 2)
    with torch.no_grad():
        made = evaluate(graph, parameters, others)
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


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_run_again(name: str) -> None:
    graph = assert_is_the_model(import_timm().create_model(name, **TIMM[name]), IMAGES)
    assert set(graph.inputs) == {"0"}
    assert len(graph.parameters) > 20


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
