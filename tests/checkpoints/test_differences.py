"""Differences of weights: every bit counts, and what a port did to arrays is named by the arrays alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import pytest

from mixer_equiv import MixerConfig
from mixer_equiv.checkpoints.differences import PORT_FAULTS, PortFault, bit_differences, port_faults, same_bits
from mixer_equiv.random_weights import draw_params

Weights = Mapping[str, np.ndarray]

# 12 blocks, whose order as strings is another; a grid of 3 by 4, and all widths 12, so that arrays can be swapped.
CONFIG = MixerConfig(
    num_classes=5,
    num_blocks=12,
    patch_size=2,
    image_size=(6, 8),
    hidden_dim=12,
    tokens_mlp_dim=12,
    channels_mlp_dim=12,
)


def weights() -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in draw_params(CONFIG, 3).items()}


# Bits


def test_arrays_differ_in_dtype_shape_and_any_bit() -> None:
    base = np.array([[0.0, 1.0, np.nan], [-1.0, 2.0, np.inf]])
    bits = base.view(np.uint64).copy()
    bits[0, 2] ^= 1
    off = base.copy()
    off[1, 1] = np.nextafter(2.0, 3.0)
    signed = base.copy()
    signed[0, 0] = -0.0
    others = {
        "same": base.copy(),
        "same in another order of memory": np.asfortranarray(base),
        "one ulp": off,
        "the sign of zero": signed,
        "the payload of NaN": bits.view(np.float64),
        "shape": base.reshape(3, 2),
        "one more axis": base[None],
        "dtype": base.view(np.int64),
        "precision": base.astype(np.float32),
    }
    ours = dict.fromkeys(others, base)
    assert bit_differences(ours, others) == list(others)[2:]
    assert bit_differences(others, ours) == list(others)[2:]


def test_arrays_of_one_side_alone_differ() -> None:
    one, two = np.ones(2), np.ones((2, 2))
    assert bit_differences({"a": one, "b": one}, {"b": one, "c": two}) == ["a", "c"]
    assert bit_differences({}, {}) == []
    assert bit_differences({"a": one[:0]}, {"a": one[:0]}) == []
    assert bit_differences({"a": np.ones(())}, {"a": np.zeros(())}) == ["a"]


def test_the_bit_comparison_sees_one_bit_a_payload_a_sign_and_a_dtype() -> None:
    quiet, payload = (np.array([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001))
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(quiet, payload), (zero, -zero), (one, np.ones(1))]
    for x, y in pairs:
        assert bit_differences({"x": x}, {"x": y}) == ["x"]
    assert bit_differences({"x": quiet}, {"x": quiet.copy()}) == []
    assert bit_differences({"x": quiet}, {}) == ["x"]


def test_the_order_in_memory_is_no_difference_and_a_scalar_is_compared() -> None:
    whole = np.arange(6.0).reshape(2, 3)
    assert same_bits(whole, np.asfortranarray(whole))
    assert same_bits(np.float32(1.5).reshape(()), np.float32(1.5).reshape(()))
    assert not same_bits(whole, whole.T)


# Faults of a port


def _swapped(old: str, new: str) -> Callable[[Weights], Weights]:
    names = {n: n.replace(old, "?").replace(new, old).replace("?", new) for n in weights()}
    return lambda w: {n: w[names[n]] if w[names[n]].shape == w[n].shape else w[n] for n in w}


def _blocks(order: list[int]) -> Callable[[Weights], Weights]:
    def moved(w: Weights) -> Weights:
        names = {n: n.split("/", 1) for n in w}
        blocks = {f"MixerBlock_{i}": f"MixerBlock_{j}" for i, j in enumerate(order)}
        return {n: w["/".join((blocks.get(top[0], top[0]), *top[1:]))] for n, top in names.items()}

    return moved


def _tokens_by_columns(w: Weights) -> Weights:
    order = [row * 4 + column for column in range(4) for row in range(3)]
    axes = {"Dense_0/kernel": 0, "Dense_1/kernel": 1, "Dense_1/bias": 0}
    axis = {n: axes.get(n.partition("/token_mixing/")[2]) for n in w}
    return {n: a if axis[n] is None else a.take(order, axis[n]) for n, a in w.items()}


def _one(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda w: {**w, name: change(w[name])}


def _all(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    return lambda w: {n: change(a) for n, a in w.items()}


def _nan(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[0] = np.nan
    return changed


def _by_ulps(count: int) -> Callable[[np.ndarray], np.ndarray]:
    def moved(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        for _ in range(count):
            changed[1] = np.nextafter(changed[1], np.float32(np.inf))
        return changed

    return moved


BIAS, KERNEL = "MixerBlock_7/channel_mixing/Dense_1/bias", "MixerBlock_3/token_mixing/Dense_0/kernel"
STRINGS = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]

# A fault, what it does to weights, and its detail.
FAULTS: list[tuple[str, Callable[[Weights], Weights], str]] = [
    ("kernel_not_transposed", _one(KERNEL, np.transpose), ""),
    ("norms_swapped", _swapped("LayerNorm_0", "LayerNorm_1"), ""),
    ("mlps_swapped", _swapped("token_mixing", "channel_mixing"), ""),
    ("blocks_reordered", _blocks(STRINGS), ""),
    ("blocks_moved", _blocks([1, 0, *range(2, 12)]), ""),
    ("stem_hw_swapped", _one("stem/kernel", lambda k: k.swapaxes(0, 1)), ""),
    ("stem_flattened", _one("stem/kernel", lambda k: k.transpose(2, 0, 1, 3).reshape(k.shape)), "channels ph pw"),
    ("tokens_by_columns", _tokens_by_columns, ""),
    ("head_not_loaded", lambda w: {n: np.sin(a) if n.startswith("head/") else a for n, a in w.items()}, ""),
    ("zeroed", _one(BIAS, np.zeros_like), ""),
    ("not_finite", _one(BIAS, _nan), ""),
    ("rounded_to_bfloat16", _all(lambda a: a.astype(ml_dtypes.bfloat16).astype(a.dtype)), ""),
    ("rounded_to_float16", _all(lambda a: a.astype(np.float16).astype(a.dtype)), ""),
    ("last_place", _one(BIAS, _by_ulps(2)), ""),
    ("dtype", _one(BIAS, lambda a: a.astype(np.float64)), "float64"),
    ("weights", _one(BIAS, _by_ulps(3)), ""),
    ("weights", _one("head/kernel", np.negative), ""),
    ("weights", _one(BIAS, lambda a: np.nextafter(a.astype(np.float64), np.inf)), ""),
    ("weights", _one(BIAS, lambda a: a[:3]), ""),
    ("weights", lambda w: {n: a for n, a in w.items() if n != BIAS}, ""),
]


@pytest.mark.parametrize(("fault", "change", "detail"), FAULTS, ids=[f"{i} {row[0]}" for i, row in enumerate(FAULTS)])
def test_a_fault_of_a_port_is_named_and_every_array_that_shows_it(
    fault: str, change: Callable[[Weights], Weights], detail: str
) -> None:
    before = weights()
    after = change(before)
    assert list(port_faults(before, after, CONFIG)) == [PortFault(fault, bit_differences(before, after), detail)]


def test_weights_in_float64_that_were_rounded_to_float32_are_named() -> None:
    before = draw_params(CONFIG, 3)
    (found,) = port_faults(before, {n: a.astype(np.float32).astype(float) for n, a in before.items()}, CONFIG)
    assert found.fault == "rounded_to_float32"


def test_every_fault_is_made_by_a_test() -> None:
    assert {fault for fault, _, _ in FAULTS} | {"rounded_to_float32"} == set(PORT_FAULTS)


def test_each_fault_has_its_own_arrays_and_the_same_weights_have_none() -> None:
    before = weights()
    assert list(port_faults(before, dict(before), CONFIG)) == []
    wide = {"stem/bias": before["stem/bias"].astype(float), "head/bias": before["head/bias"].astype(float)}
    after = {**before, BIAS: np.zeros_like(before[BIAS]), KERNEL: before[KERNEL].T, **wide}
    assert sorted(port_faults(before, after, CONFIG)) == [
        PortFault("dtype", ["stem/bias", "head/bias"], "float64"),
        PortFault("kernel_not_transposed", [KERNEL], ""),
        PortFault("zeroed", [BIAS], ""),
    ]


def test_weights_that_were_not_finite_before_are_followed_too() -> None:
    before = weights()
    before[BIAS] = np.where(np.arange(12) == 3, np.float32(np.nan), before[BIAS])
    (found,) = port_faults(before, {**before, BIAS: before[BIAS].astype(np.float64)}, CONFIG)
    assert found == PortFault("dtype", [BIAS], "float64")


def test_tokens_of_a_grid_of_two_columns_are_told_apart() -> None:
    config = CONFIG.replace(image_size=(12, 4))
    before = {name: array.astype(np.float32) for name, array in draw_params(config, 3).items()}
    name = "MixerBlock_3/token_mixing/Dense_1/bias"
    by_columns = before[name].reshape(6, 2).T.reshape(-1)
    (found,) = port_faults(before, {**before, name: by_columns}, config)
    assert found == PortFault("tokens_by_columns", [name], "")


def test_what_was_not_finite_before_is_no_fault_of_the_port() -> None:
    before = {**weights(), BIAS: np.full(12, np.nan, np.float32)}
    (found,) = port_faults(before, {**before, BIAS: np.full(12, np.inf, np.float32)}, CONFIG)
    assert found.fault == "weights"
