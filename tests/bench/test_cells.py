"""Cells and contestants: their combinations, the operations counted, and the impossible ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from mixer_equiv import ConfigError, Formulation, MixerConfig
from mixer_equiv.bench.calls import make_call
from mixer_equiv.bench.cells import Cell, make_cells
from mixer_equiv.bench.contestants import Entry, make_entries, parse_formulations
from tests.support.cells import SMALL


@pytest.mark.parametrize("config", [SMALL, MixerConfig.from_name("S/32")], ids=["small", "S/32"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_cell_counts_the_operations_that_torch_counts(config: MixerConfig, mode: str) -> None:
    cell = Cell(config, batch=2, mode=mode)
    call = make_call(Entry("tutorial"), cell, 0)
    with FlopCounterMode(display=False) as counted:
        call()
    assert cell.flops == counted.get_total_flops()


def test_cells_are_every_combination() -> None:
    made = list(make_cells([SMALL], ["float32", "bfloat16"], [1, 8], "cpu", ["inference", "training"]))
    assert len(set(made)) == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of float32"),
        ({"dtype": "float16"}, "dtype is 'float16' on the CPU"),
        ({"batch": 0}, "batch is 0"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of cpu, cuda"),
        ({"mode": "sleep"}, "mode is 'sleep'; it must be one of inference, training"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Cell(SMALL, **fields)


def test_contestants_are_programs_in_the_formulations_that_they_can_have() -> None:
    given = parse_formulations(["conv,matmul,linear", "conv, linear, linear"])
    assert [str(each) for each in make_entries(["torch", "timm"], given)] == [
        "torch",
        "torch (conv, matmul, linear)",
        "timm",
    ]
    assert len(parse_formulations(["all"])) == 30


@pytest.mark.parametrize("text", ["conv", "conv,linear,linear,linear", "conv,none,linear"])
def test_what_is_no_formulation_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="formulation"):
        parse_formulations([text])


@pytest.mark.parametrize(("name", "formulation"), [("mlp", Formulation()), ("timm", Formulation(tokens="matmul"))])
def test_what_is_no_contestant_is_an_error(name: str, formulation: Formulation) -> None:
    with pytest.raises(ConfigError, match=r"program is 'mlp'|timm is written in one way"):
        Entry(name, formulation)
