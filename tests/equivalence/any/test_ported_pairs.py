"""The pairs of `tests/support/ported` are one function each, under the mapping that they state."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.ported import PAIRS, Ported, Side
from tests.support.ported.pair import Arrays

NAMES = [f"{family.name}: {a} - {b}" for family, a, b in PAIRS]
MOST = 1e-12  # relative to the output, in float64


@pytest.fixture(scope="module", params=PAIRS, ids=NAMES)
def pair(request: pytest.FixtureRequest) -> Ported:
    family, a, b = request.param
    return family.pair(a, b)


def residual(pair: Ported, parameters_a: Arrays, parameters_b: Arrays, seed: int = 3) -> float:
    inputs = pair.draw_inputs(seed)
    one = pair.a.run(parameters_a, pair.a.arguments(inputs))
    other = pair.b.run(parameters_b, pair.b.arguments(inputs))
    assert [array.dtype for array in (*one, *other)] == [np.float64] * (2 * len(one))
    assert all(np.ptp(array) > 0 for array in one)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(one, other, strict=True))


def test_both_sides_are_one_function(pair: Ported) -> None:
    parameters = pair.a.draw(1)
    mapped = pair.mapping(parameters)
    assert residual(pair, parameters, mapped) <= MOST
    assert residual(pair, parameters, pair.b.draw(2)) > 1e-3  # the parameters matter


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
