"""The mean over tokens and the head in other writings: (y, head Linear) to logits (b, classes); y is (b, s, d)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Classify = Callable[[Tensor, nn.Linear], Tensor]


def pooled(pool: Callable[[Tensor], Tensor]) -> Classify:
    """The head on what `pool` makes of (b, s, d)."""
    return lambda y, head: head(pool(y))


def by_matmul(y: Tensor) -> Tensor:
    return (torch.full((1, y.shape[1]), 1 / y.shape[1], dtype=y.dtype) @ y)[:, 0]


def by_einsum(y: Tensor) -> Tensor:
    return torch.einsum("uvw,v->uw", y, torch.ones(y.shape[1], dtype=y.dtype) / y.shape[1])


def by_cumsum(y: Tensor) -> Tensor:
    return y.cumsum(1)[:, -1] / y.shape[1]


def by_loop(y: Tensor) -> Tensor:
    total = torch.zeros_like(y[:, 0])
    for token in y.unbind(1):
        total += token
    return total / y.shape[1]


def by_running_mean(y: Tensor) -> Tensor:
    mean = y[:, 0]
    for k in range(1, y.shape[1]):
        mean = mean + (y[:, k] - mean) / (k + 1)
    return mean


def by_rows_then_columns(y: Tensor) -> Tensor:
    """The mean of means over the 4 x 3 grid."""
    return y.unflatten(1, (4, 3)).mean(2).mean(1)


def by_uniform_attention(y: Tensor) -> Tensor:
    """Attention of one query of zeros."""
    scores = torch.zeros(len(y), 1, y.shape[1], dtype=y.dtype)
    return (scores.softmax(-1) @ y).squeeze(1)


def by_attention(y: Tensor) -> Tensor:
    """A query of zeros attends to all tokens alike."""
    return F.scaled_dot_product_attention(torch.zeros_like(y[:, :1]), y, y)[:, 0]


def by_mask(y: Tensor) -> Tensor:
    """The mask of valid tokens is made on the way, and all are valid."""
    mask = torch.ones(y.shape[:2], dtype=y.dtype)
    return (y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def by_scatter(y: Tensor) -> Tensor:
    """Tokens are added to the row of their image."""
    rows = torch.arange(len(y)).repeat_interleave(y.shape[1])
    return torch.zeros_like(y[:, 0]).index_add(0, rows, y.flatten(0, 1)) / y.shape[1]


def by_scaling_first(y: Tensor) -> Tensor:
    """Divided, then summed."""
    return functools.reduce(operator.add, (y / y.shape[1]).unbind(1))


def head_first(y: Tensor, head: nn.Linear) -> Tensor:
    return head(y).mean(1)


def head_between(y: Tensor, head: nn.Linear) -> Tensor:
    """Product, mean, then the bias."""
    return (y @ head.weight.T).mean(-2) + head.bias


def class_by_class(y: Tensor, head: nn.Linear) -> Tensor:
    mean = y.sum(1) / len(y[0])
    return torch.stack([mean @ row + bias for row, bias in zip(head.weight, head.bias, strict=True)], -1)


def by_conv1d(y: Tensor, head: nn.Linear) -> Tensor:
    """Head and mean are one convolution, as wide as there are tokens."""
    filters = head.weight[..., None].expand(-1, -1, y.shape[1]) / y.shape[1]
    return F.conv1d(y.mT, filters, head.bias)[..., 0]


def by_flat_matrix(y: Tensor, head: nn.Linear) -> Tensor:
    """The head repeated for every token, on all tokens in a row, and the result divided."""
    return F.linear(y.flatten(1), head.weight.repeat(1, y.shape[1])) / y.shape[1] + head.bias


def by_scaled_addmm(y: Tensor, head: nn.Linear) -> Tensor:
    """The division is the product's factor."""
    return torch.addmm(head.bias, y.sum(1), head.weight.t(), alpha=1 / y.shape[1])


def by_column_of_ones(y: Tensor, head: nn.Linear) -> Tensor:
    """A one is added to each token, before the mean."""
    wide = torch.cat([y, y.new_ones(*y.shape[:2], 1)], 2).mean(1)
    return wide @ torch.cat([head.weight, head.bias[:, None]], 1).mT


POOLS: dict[str, Classify] = {
    "matmul with 1/n": pooled(by_matmul),
    "einsum with 1/n": pooled(by_einsum),
    "cumsum": pooled(by_cumsum),
    "loop": pooled(by_loop),
    "running mean": pooled(by_running_mean),
    "rows, then columns": pooled(by_rows_then_columns),
    "softmax of zeros": pooled(by_uniform_attention),
    "attention of a query of zeros": pooled(by_attention),
    "mask of ones": pooled(by_mask),
    "index_add": pooled(by_scatter),
    "divided, then summed": pooled(by_scaling_first),
    "adaptive_avg_pool1d": pooled(lambda y: F.adaptive_avg_pool1d(y.mT, 1).squeeze(-1)),
    "avg_pool1d": pooled(lambda y: F.avg_pool1d(y.mT, y.shape[1]).flatten(1)),
    "nanmean": pooled(lambda y: y.nanmean(1)),
    "head first": head_first,
    "head, mean, bias": head_between,
    "class by class": class_by_class,
    "one conv1d": by_conv1d,
    "head repeated for every token": by_flat_matrix,
    "addmm with a factor": by_scaled_addmm,
    "column of ones": by_column_of_ones,
}
