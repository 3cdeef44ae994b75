"""Sparse and nested tensors: refused in a sentence where a run has one; sparse parameters are drawn dense."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixer_equiv import verify
from tests.support.odd import IMAGE, Forward, Odd

SPARSE = torch.eye(7).to_sparse()


def nested(images: Tensor, layout: torch.layout) -> Tensor:
    rows = torch.nested.nested_tensor(list(images), layout=layout)
    return torch.nested.to_padded_tensor(rows, 0.0)


REFUSED: dict[str, tuple[Callable[[Forward, Tensor], Tensor], str]] = {
    "a sparse constant": (lambda f, x: torch.sparse.mm(SPARSE, f(x).T).T, "sparse tensors (sparse_coo), here one held"),
    "a sparse value": (lambda f, x: f(x).to_sparse().to_dense(), "sparse tensors (sparse_coo), here one made by "),
    "a nested value": (lambda f, x: f(nested(x, torch.strided)), "nested tensors, here one "),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # torch's own
@pytest.mark.parametrize("kind", REFUSED)
def test_of_other_tensors_nothing_is_compared(kind: str) -> None:
    doing, said = REFUSED[kind]
    report = verify(Odd(doing), image=IMAGE)
    assert (report.verdict, report.causes) == ("nothing_compared", ())
    assert report.reasons[0].startswith(said)
    assert report.reasons[0].endswith("cannot be followed; verify a writing with dense tensors")


def test_a_sparse_parameter_is_drawn_dense() -> None:
    model = Odd(lambda f, x: f(x))
    model.extra = nn.Parameter(SPARSE)
    model.doing = lambda f, x: f(x) + 0 * torch.mm(model.extra, f(x).T).T
    assert verify(model, image=IMAGE, gradients=False).verdict == "equivalent"
