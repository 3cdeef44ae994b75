"""A recorded jaxpr, run in torch on other parameters and inputs, gives what JAX gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from jax import lax

from mixer_equiv.equivalence.record.graph import Graph, Ref, Setting
from mixer_equiv.equivalence.record.jax_graph import record_graph
from mixer_equiv.equivalence.record.torch.evaluation import evaluate
from mixer_equiv.errors import NotFollowedError
from tests.support.graph_files import assert_same, assert_same_bits, read_again

Arrays = Mapping[str, Any]
Function = Callable[[Arrays, Arrays], Any]

SHAPES = {"w": (3,), "k": (3, 2, 3, 5), "d": (3, 3, 1, 3), "m": (6, 4), "s": (3, 3)}


def activations(p: Arrays, x: Arrays) -> Any:
    kinds = nn.silu, nn.relu, nn.leaky_relu, nn.elu, nn.softplus, nn.hard_swish, nn.tanh, nn.sigmoid, nn.soft_sign
    return [kind(x["0"] * p["w"]) for kind in kinds]


def convolution(p: Arrays, x: Arrays) -> Any:
    padding = [(1, 2), (0, -1)]
    return lax.conv_general_dilated(x["0"], p["k"], (2, 1), padding, rhs_dilation=(1, 2), dimension_numbers=NHWC)


def depthwise(p: Arrays, x: Arrays) -> Any:
    groups = {"feature_group_count": 3}
    return lax.conv_general_dilated(x["0"], p["d"], (1, 1), "SAME", dimension_numbers=NHWC, **groups)


def written(p: Arrays, x: Arrays) -> Any:
    y = x["0"].at[:, 1:3].set(2.0)
    y = y.at[:, jnp.array([4, 4])].add(x["0"][:, :2])
    y = y.at[:, jnp.array([4, 9])].set(p["w"], mode="drop")
    return y.at[0, 0, 0, 0].multiply(p["w"][0]).at[1, 2].max(0.3)


def padded(p: Arrays, x: Arrays) -> Any:
    y = jnp.pad(x["0"], ((0, 0), (1, 2), (0, 0), (0, 0)))
    return y * p["w"], lax.pad(x["0"], p["w"][0], [(0, 0, 0), (-1, 2, 1), (0, 0, 2), (0, -1, 0)])


def rotated(p: Arrays, x: Arrays) -> Any:
    first, second = jnp.split(x["0"], 2, 1)
    return jnp.concatenate([second * jnp.sin(jnp.arange(8.0))[:, None] * p["w"], -first], 1)


def recurrent(p: Arrays, x: Arrays) -> Any:
    rows = jnp.moveaxis(x["0"][:, 0], 1, 0)
    return lax.scan(lambda held, row: (jnp.tanh(held @ p["s"] + row), held.sum()), jnp.zeros((2, 3)), rows)


def normalised(p: Arrays, x: Arrays) -> Any:
    y = x["0"] - x["0"].mean(-1, keepdims=True)
    return y * lax.rsqrt(x["0"].var(-1, keepdims=True) + 1e-6) * p["w"], jnp.linalg.norm(y, axis=-1)


def attended(p: Arrays, x: Arrays) -> Any:
    q = x["0"] @ p["s"]
    scores = jnp.where(jnp.tril(jnp.ones((8, 8), bool)), jnp.einsum("bhqd,bhkd->bhqk", q, x["0"]) / jnp.sqrt(3), -1e9)
    return jnp.einsum("bhqk,bhkd->bhqd", nn.softmax(scores), x["0"])


def repeated(p: Arrays, x: Arrays) -> Any:
    half = x["0"][:, :4]
    return jnp.roll(x["0"], 3, 1) * p["w"] + jnp.repeat(half, 2, 1) + jnp.tile(half, (1, 2, 1, 1))


def reduced(p: Arrays, x: Arrays) -> Any:
    y = x["0"] * p["w"]
    return [y.prod((1, 2)), y.min(1), (y > 1).any(), (y < 9).all((1, 3)), jnp.clip(y, -0.5, 0.7).sum(), y.argmax(-1)]


def cumulated(p: Arrays, x: Arrays) -> Any:
    y = x["0"] * p["w"]
    return jnp.cumsum(y, 1), lax.cumsum(y, 2, reverse=True), lax.cummax(y, 1), jnp.cumprod(y, 3)


NHWC = ("NHWC", "HWIO", "NHWC")
FUNCTIONS: dict[str, Function] = {
    "activations": activations,
    "GELU": lambda p, x: (nn.gelu(x["0"] * p["w"]), nn.gelu(x["0"], approximate=False)),
    "max pool": lambda p, x: nn.max_pool(x["0"], (3, 3), (2, 2), "SAME") * p["w"],
    "mean pool": lambda p, x: nn.avg_pool(x["0"], (2, 2), (2, 2)) * p["w"],
    "convolution": convolution,
    "transposed": lambda p, x: lax.conv_transpose(x["0"], p["k"], (2, 2), "SAME", dimension_numbers=NHWC),
    "depthwise": depthwise,
    "einsum": lambda p, x: jnp.einsum("bhwc,cd,bhvd->bhwv", x["0"], p["s"], x["0"]),
    "embedding": lambda p, x: jnp.take(p["m"], (x["0"][..., 0] * 3).astype(int) % 6, axis=0),
    "one hot": lambda p, x: nn.one_hot(x["0"][..., 0].round().astype(int) % 3, 3) @ p["m"][:3],
    "rows and columns": lambda p, x: x["0"][:, jnp.array([1, 3]), :, jnp.array([0, 2])] * p["w"][0],
    "slices": lambda p, x: x["0"][:, 2:7:2, ::-1, -1] * p["w"][0],
    "rows of each": lambda p, x: jnp.take_along_axis(x["0"], jnp.argsort(x["0"], 2)[:, :, :2], 2) * p["w"],
    "rows under vmap": lambda p, x: jax.vmap(lambda image: image[jnp.array([1, 2])] @ p["s"])(x["0"]),
    "moving slice": lambda p, x: lax.dynamic_slice(x["0"] * p["w"], (0, x["0"].argmax() % 4, 0, 0), (2, 4, 8, 3)),
    "written into": written,
    "sorted": lambda p, x: (jnp.sort(x["0"], 1) * p["w"], jnp.argsort(x["0"], -1), lax.top_k(x["0"], 2)),
    "padded": padded,
    "rotated": rotated,
    "recurrent": recurrent,
    "branch": lambda p, x: lax.cond(True, lambda image: image * p["w"], lambda image: image, x["0"]),
    "repeated": repeated,
    "normalised": normalised,
    "attended": attended,
    "reduced": reduced,
    "cumulated": cumulated,
    "complex": lambda p, x: jnp.real(jnp.exp(1j * x["0"] * p["w"])),
    "resized": lambda p, x: jax.image.resize(x["0"], (2, 12, 5, 3), "bilinear") * p["w"],
    "log of a sum": lambda p, x: jax.scipy.special.logsumexp(x["0"] * p["w"], -1),
    "rematerialised": lambda p, x: jax.checkpoint(lambda image: jnp.sin(image * p["w"]))(x["0"]),
}


def draw(seed: int) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    return lambda name, shape: np.random.default_rng([seed, *name.encode()]).standard_normal(shape) * 0.4


def assert_is_the_function(function: Function, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Graph:
    """Assert that a recorded graph gives a function's outputs, and after its way through a file the same bits."""
    rng = np.random.default_rng(5)
    given, other = ({"0": rng.standard_normal((2, 8, 8, 3))} for _ in range(2))
    graph = record_graph(function, shapes, given, draw(0))
    parameters = {name: draw(1)(name, shape) for name, shape in shapes.items()}
    tensors = [{name: torch.from_numpy(array) for name, array in held.items()} for held in (parameters, other)]
    read = read_again(graph)
    assert_same(graph, read)
    made, saved = evaluate(graph, *tensors), evaluate(read, *tensors)
    assert_same_bits(made, saved)
    with jax.enable_x64(True):
        result = function(*({n: jnp.asarray(a) for n, a in held.items()} for held in (parameters, other)))
        leaves = jax.tree_util.tree_leaves_with_path(result)
        expected = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    assert made.keys() == expected.keys()
    for path, array in expected.items():
        assert tuple(made[path].shape) == array.shape
        np.testing.assert_allclose(made[path].numpy(), array, rtol=1e-11, atol=1e-13)
    return graph


@pytest.mark.parametrize("name", FUNCTIONS)
def test_primitives_of_jax_run_in_torch(name: str) -> None:
    assert_is_the_function(FUNCTIONS[name])


class Small(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(10, (4, 4), strides=(4, 4))(x).reshape(len(x), -1, 10)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.Dense(10)(nn.gelu(nn.Dense(17)(nn.LayerNorm()(x))))
        return {"logits": nn.Dense(7)(x.mean(1)), "tokens": x}


def test_a_linen_model_runs_again_and_knows_its_places() -> None:
    model = Small()
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((2, 8, 8, 3)))["params"]
    leaves = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(key.key for key in path) for path, _ in leaves[0]]

    def call(p: Arrays, x: Arrays) -> Any:
        return model.apply({"params": jax.tree.unflatten(leaves[1], [p[name] for name in names])}, x["0"])

    shapes = {name: tuple(leaf.shape) for name, (_, leaf) in zip(names, leaves[0], strict=True)}
    graph = assert_is_the_function(call, shapes)
    assert set(graph.parameters) == set(names)
    products = [node for node in graph.nodes if node.operation == "lax.dot_general" and node.place]
    assert products
    assert all(node.place is not None and node.place.file.endswith("test_jax_graph.py") for node in products)


def is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | Ref | Setting)


@pytest.mark.parametrize("name", ["convolution", "embedding", "written into", "recurrent", "sorted"])
def test_arguments_are_plain_data(name: str) -> None:
    graph = record_graph(FUNCTIONS[name], SHAPES, {"0": np.ones((2, 8, 8, 3))}, draw(0))
    for number, node in enumerate(graph.nodes):
        assert is_plain(node.arguments)
        assert is_plain(dict(node.keywords))
        assert all(ref.node < number for ref in node.refs)


def test_a_primitive_without_a_rule_is_named() -> None:
    graph = record_graph(lambda p, x: lax.lgamma(x["0"] * p["w"]), SHAPES, {"0": np.ones((2, 3))}, draw(0))
    given = {"w": torch.ones(3, dtype=torch.float64)}, {"0": torch.ones(2, 3, dtype=torch.float64)}
    with pytest.raises(NotFollowedError, match=r"lax\.lgamma cannot be run again"):
        evaluate(graph, *given)
