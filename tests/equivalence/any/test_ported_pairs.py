"""The pairs of `tests/support/ported` are one function each, under the mapping that they state."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.support.ported import PAIRS, Ported, Side
from tests.support.ported.pair import draw_parameter

NAMES = [f"{family.name}: {a} - {b}" for family, a, b in PAIRS]
MOST = 1e-12  # relative to the output, in float64


@pytest.fixture(scope="module", params=PAIRS, ids=NAMES)
def pair(request: pytest.FixtureRequest) -> Ported:
    family, a, b = request.param
    return family.pair(a, b)


def residual(pair: Ported) -> float:
    """The larger relative distance of the outputs, on the same random parameters and inputs."""
    parameters, inputs = pair.a.draw(1), pair.draw_inputs(3)
    one = pair.a.run(parameters, pair.a.arguments(inputs))
    other = pair.b.run(pair.mapping(parameters), pair.b.arguments(inputs))
    assert [array.dtype for array in (*one, *other)] == [np.float64] * (2 * len(one))
    assert all(np.ptp(array) > 0 for array in one)
    return max(relative_distance(a, b) for a, b in zip(one, other, strict=True))


def relative_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_both_sides_are_one_function(pair: Ported) -> None:
    assert residual(pair) <= MOST


# Parameters on which no output depends: a softmax ignores what is added to all scores of a query, and a LayerNorm what
# is added to all channels of a token.
WITHOUT_EFFECT = re.compile(r"(k_proj\.bias|key/bias|b_k)$|^mixings\.\d*[02468]\.out_bias$")


def test_the_outputs_depend_on_each_parameter_but_these(pair: Ported) -> None:
    parameters, inputs = pair.b.draw(1), pair.b.arguments(pair.draw_inputs(3))
    before = pair.b.run(parameters, inputs)
    without_effect = set()
    for name, array in parameters.items():
        other = draw_parameter(2, name, array.shape)
        after = pair.b.run({**parameters, name: array + other / 10}, inputs)
        if max(relative_distance(a, b) for a, b in zip(before, after, strict=True)) < 1e-6:
            without_effect.add(name)
    assert without_effect == set(filter(WITHOUT_EFFECT.search, parameters))


def numbered(side: Side) -> dict[str, np.ndarray]:
    """Parameters in which every number of all is there once."""
    counts = np.cumsum([0, *(int(np.prod(shape)) for shape in side.shapes.values())])
    return {
        name: np.arange(start, start + np.prod(shape, dtype=int)).reshape(shape)
        for start, (name, shape) in zip(counts, side.shapes.items(), strict=False)
    }


def test_the_mapping_uses_each_number_once(pair: Ported) -> None:
    given = numbered(pair.a)
    mapped = pair.mapping(given)
    assert {name: array.shape for name, array in mapped.items()} == dict(pair.b.shapes)
    taken = np.sort(np.concatenate([array.ravel() for array in mapped.values()]))
    np.testing.assert_array_equal(taken, np.arange(len(taken)))
    returned = pair.inverse(mapped)
    assert returned.keys() == given.keys()
    assert all(np.array_equal(returned[name], array) for name, array in given.items())
