"""A side that computes something else in float32 is different; rounding, however large, is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mixer_equiv import verify
from mixer_equiv.checkpoints.checkpoint import Checkpoint
from mixer_equiv.layouts import LINEN
from mixer_equiv.random_weights import STYLES, draw_params
from tests.support.odd import CONFIG, IMAGE, Forward, Odd


def off_by(factor: float) -> Odd:
    def doing(forward: Forward, x: Tensor) -> Tensor:
        y: Tensor = forward(x)
        return y * (1 + factor if y.dtype == torch.float32 else 1)

    return Odd(doing)


@pytest.mark.parametrize("factor", [1e-2, 1e-5])
@pytest.mark.parametrize("other", ["reference", "torch"])
def test_another_function_in_float32_is_different_whatever_it_is_compared_with(factor: float, other: str) -> None:
    report = verify(off_by(factor), other, image=IMAGE, gradients=False)
    assert (report.verdict, [cause.name for cause in report.causes]) == ("different", ["float32"])
    assert report.causes[0].found.startswith(f"an error of {factor:.1e} in float32")


def test_an_error_like_that_of_rounding_is_none() -> None:
    assert verify(off_by(2**-23), "reference", image=IMAGE, gradients=False).verdict == "equivalent"


@pytest.mark.parametrize("style", [style for style in STYLES if style != "special"])
def test_ill_conditioned_weights_are_no_fault_of_float32(style: str) -> None:
    weights = {name: array.astype(np.float32) for name, array in draw_params(CONFIG, 5, style).items()}
    report = verify("flax", "torch", weights=Checkpoint.from_arrays(weights, layout=LINEN, config=CONFIG))
    assert report.verdict == "equivalent", report.causes
