"""The parts of a packed torch Mixer's time on a CPU: `python -m benchmarks.breakdown [--write]`.

Timed in interleaved rounds: the whole model; all its matrix products alone, on weights that are each read from memory;
the same products with one block's weights over and over, which stay in a cache; reading all weights once, to add them
up; and the arithmetic of its products done in square ones, the peak. Start reading at `make_calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import command_line, result_files
from mixer_equiv import MixerConfig
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Entry
from mixer_equiv.bench.correctness import Checker
from mixer_equiv.bench.environment import pin_cores
from mixer_equiv.bench.export import markdown_table
from mixer_equiv.bench.timing import quartiles, time_in_rounds
from mixer_equiv.bench.torch_calls import packed_matrix_product
from mixer_equiv.models.torch.packed import packed_product

TIMED_CELLS = [Cell(MixerConfig.from_name(name), batch=batch) for name in ("S/32", "B/16") for batch in (1, 8)]
ROUNDS = 15
SQUARE_SIDE = 2048
PACKED_ENTRY = Entry("torch packed")
PARTS = {
    "model": "whole model",
    "products": "its products",
    "cached": "products, weights in cache",
    "reading": "reading the weights",
    "peak": "arithmetic at the peak",
}


class Product(NamedTuple):
    """A matrix product: the rows of the input, and the shape (out, width) of the weight."""

    rows: int
    out: int
    width: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.out * self.width


def matrix_products(config: MixerConfig, batch: int) -> list[Product]:
    """List the products of a Mixer in order: the stem's, and four for each block; the head's is left out."""
    tokens, channels = config.num_tokens, config.hidden_dim
    by_tokens, by_channels = batch * channels, batch * tokens
    patch = config.in_channels * config.patch_hw[0] * config.patch_hw[1]
    block = [
        Product(by_tokens, config.tokens_mlp_dim, tokens),
        Product(by_tokens, tokens, config.tokens_mlp_dim),
        Product(by_channels, config.channels_mlp_dim, channels),
        Product(by_channels, channels, config.channels_mlp_dim),
    ]
    return [Product(by_channels, channels, patch), *block * config.num_blocks]


def make_calls(cell: Cell) -> dict[str, Callable[[], object]]:
    """Make a call for each of `PARTS`, for the peak a square product. Raises `AssertionError` for a wrong model."""
    whole, products = make_call(PACKED_ENTRY, cell, 0), matrix_products(cell.config, cell.batch)
    refused = Checker().check(PACKED_ENTRY, cell, whole).refused
    assert refused is None, refused
    inputs = {(rows, width): torch.randn(rows, width) for rows, _, width in products}
    weights = [torch.randn(out, width) for _, out, width in products]
    layers = [
        (inputs[rows, width], packed_product(weight))
        for (rows, _, width), weight in zip(products, weights, strict=True)
    ]
    stem, *blocks = layers
    first = [stem, *blocks[:4] * cell.config.num_blocks]
    flat = torch.cat([weight.flatten() for weight in weights])

    def run_all(given: Iterable[tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]]) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                for x, layer in given:
                    layer(x)

        return run

    return {
        "model": whole,
        "products": run_all(layers),
        "cached": run_all(first),
        "reading": flat.sum,
        "square": packed_matrix_product(cell, SQUARE_SIDE),
    }


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """Measure the milliseconds of each part, and the rate at which the weights were read."""
    seconds = time_in_rounds(make_calls(cell), rounds)
    products = matrix_products(cell.config, cell.batch)
    flops = sum(product.flops for product in products)
    seconds["peak"] = seconds.pop("square") * flops / (2 * SQUARE_SIDE**3)
    size = sum(4 * product.out * product.width for product in products)
    return {
        "cell": str(cell),
        "weights_MB": round(size / 1e6),
        "GB_per_second": round(size / 1e9 / float(np.median(seconds["reading"])), 1),
        "ms": {name: [float(f"{1e3 * q:.4g}") for q in quartiles(seconds[name])] for name in PARTS},
    }


def page(result: Mapping[str, Any]) -> str:
    """Write the numbers in Markdown."""
    rows = []
    for each in result["cells"]:
        whole = each["ms"]["model"][1]
        shown = [f"{m:.1f} ({low:.1f}-{high:.1f}), {m / whole:.0%}" for low, m, high in map(each["ms"].get, PARTS)]
        rows.append([each["cell"], *shown, f"{each['weights_MB']} MB", f"{each['GB_per_second']} GB/s"])
    lines = [
        "# The parts of a packed Mixer's time",
        "",
        "Written by `python -m benchmarks.breakdown --write`. Milliseconds of a call in float32: medians, quartiles",
        "in brackets, and the share of the whole model. With weights that stay in a cache, the products take the time",
        "that they would take if reading weights cost nothing. The peak is the rate of square matrices of 2048.",
        "",
        *markdown_table(["cell", *PARTS.values(), "weights", "read at"], rows),
    ]
    return "\n".join([*lines, "", result_files.machine_line(result["machine"], str(result["rounds"])), ""])


def measure_all(rounds: int) -> dict[str, Any]:
    with pin_cores(None, ["torch"]):
        return {"cells": [measure(cell, rounds) for cell in TIMED_CELLS]}


def main(arguments: Sequence[str] | None = None) -> None:
    command_line.run_benchmark(arguments, "breakdown", __doc__, ROUNDS, measure_all, page)


if __name__ == "__main__":
    main()
