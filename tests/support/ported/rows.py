"""Rows for layers that many models have, between torch's arrays and Flax's or torch's under other names."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.ported.pair import Row


def same(a: str, b: str) -> Row:
    return Row((a,), (b,), "... -> ...")


def layer(a: str, b: str) -> Iterator[Row]:
    """A layer of torch under two names, with weight and bias."""
    yield same(f"{a}.weight", f"{b}.weight")
    yield same(f"{a}.bias", f"{b}.bias")


def dense(a: str, b: str) -> Iterator[Row]:
    """A Linear of torch as a Dense of Flax."""
    yield Row((f"{a}.weight",), (f"{b}/kernel",), "outs ins -> ins outs")
    yield same(f"{a}.bias", f"{b}/bias")


def conv(a: str, b: str, bias: bool = True) -> Iterator[Row]:
    """A Conv2d of torch as a Conv of Flax."""
    yield Row((f"{a}.weight",), (f"{b}/kernel",), "outs ins height width -> height width ins outs")
    if bias:
        yield same(f"{a}.bias", f"{b}/bias")


def norm(a: str, b: str) -> Iterator[Row]:
    """A LayerNorm of torch as one of Flax."""
    yield same(f"{a}.weight", f"{b}/scale")
    yield same(f"{a}.bias", f"{b}/bias")


def batch_norm(a: str, b: str) -> Iterator[Row]:
    """A BatchNorm of torch as one of linen, with its statistics."""
    yield from norm(a, b)
    yield same(f"{a}.running_mean", f"batch_stats/{b}/mean")
    yield same(f"{a}.running_var", f"batch_stats/{b}/var")
