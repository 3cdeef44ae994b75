"""Casts to other dtypes: every value rounded once, and no infinity made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import ConversionError
from mixer_equiv.arrays.casting import cast
from mixer_equiv.arrays.interop import BFLOAT16
from mixer_equiv.checkpoints.io import load, save
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from mixer_equiv.testing.strategies import DTYPES
from tests.support.checkpoints import CONFIG, checkpoint, in_layout
from tests.support.files import arbitrary_bits, changed


@pytest.mark.parametrize("wanted", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_astype_rounds_every_value_once(given: str, wanted: str) -> None:
    source = in_layout({name: array.astype(given) for name, array in random_params(CONFIG, 0).items()})
    cast = source.astype(wanted)
    assert changed({name: array.astype(wanted) for name, array in source.arrays.items()}, cast.arrays) == []
    assert (source.dtypes, cast.dtypes) == ((given,), (wanted,))
    assert (cast.layout, cast.config, cast.trained_with) == (source.layout, source.config, source.trained_with)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_float64_is_rounded_to_bfloat16_to_nearest_and_once(beside: int, sign: float) -> None:
    every = np.arange(0x7F80, dtype=np.uint16).view(BFLOAT16).astype(np.float64)
    below, above = every[:-1], every[1:]
    ties = (below + above) / 2
    values = np.nextafter(ties, np.inf * beside) if beside else ties
    even = np.where(np.arange(len(below)) % 2, above, below)
    expected = np.where(values > ties, above, np.where(values < ties, below, even))
    (found,) = cast({"x": sign * values}, BFLOAT16).values()
    np.testing.assert_array_equal(found.astype(np.float64), sign * expected)


def test_casts_of_any_shape_and_order_keep_their_bits() -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(37, 11))
    given = {"rows": whole, "columns": np.asfortranarray(whole), "transposed": whole.T[::2], "one": np.array(0.1)}
    given |= {"none": np.empty((0, 3)), "vector": rng.normal(size=1000), "four": rng.normal(size=(3, 2, 5, 7)).T}
    for dtype in map(np.dtype, ("float16", "float32", "float64")):
        made = cast(given, dtype, chunk_bytes=64)
        assert changed({name: array.astype(dtype) for name, array in given.items()}, made) == []
    assert {name: array.shape for name, array in cast(given, BFLOAT16, chunk_bytes=64).items()} == {
        n: a.shape for n, a in given.items()
    }


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "nonsense", "float8_e4m3fn", "longdouble"])
def test_astype_takes_floating_point_dtypes_that_files_hold(dtype: str) -> None:
    with pytest.raises(ConversionError, match=f"{dtype}.*must be one of float16, bfloat16, float32, float64"):
        checkpoint().astype(dtype)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", -3.4e38 * 2), ("float32", 1e39)])
def test_astype_refuses_to_make_infinities(dtype: str, value: float) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][3] = value
    with pytest.raises(ConversionError, match=f"{dtype} cannot hold values of head/bias: they would become infinite"):
        in_layout(params).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_astype_keeps_infinities_and_nans_that_were_there(dtype: str) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][:3] = np.inf, -np.inf, np.nan
    cast = in_layout(params).astype(dtype).arrays["head/bias"].astype(np.float64)
    np.testing.assert_array_equal(cast[:3], [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_astype_of_any_bits_warns_of_nothing(dtype: str) -> None:
    source = in_layout(arbitrary_bits(dtype))
    cast = source.astype("float64")
    with np.errstate(invalid="ignore"):
        for name, array in source.arrays.items():
            np.testing.assert_array_equal(cast.arrays[name], array.astype(np.float64))


def test_what_a_cast_refuses_is_said_in_its_own_words_alone(tmp_path: Path) -> None:
    params = random_params(CONFIG, 0)
    params["head/bias"][3] = 1e300
    save(in_layout(params), tmp_path / "x.npz")
    with pytest.raises(ConversionError, match=r"^float32 cannot hold values of head/bias: they would become infinite$"):
        save(load(tmp_path / "x.npz", lazy=True).astype("float32"), tmp_path / "y.npz")
