"""The operations that a file of a graph may have are those of torch and JAX that can be run again."""

from __future__ import annotations

from typing import Any

import torch

from mixer_equiv.equivalence.record.graph_operations import OPERATIONS
from mixer_equiv.equivalence.record.torch.evaluation import _resolve
from mixer_equiv.equivalence.record.torch.lax_rules import LAX_RULES

# They draw random numbers where their dropout is not 0, as in training alone.
WITH_DROPOUT = "scaled_dot_product"


def test_primitives_of_jax_are_those_with_a_rule() -> None:
    assert {name for name in OPERATIONS if name.startswith("lax.")} == {f"lax.{name}" for name in LAX_RULES}


def test_operations_of_torch_exist_and_draw_no_random_numbers() -> None:
    names = [name for name in OPERATIONS if not name.startswith("lax.")]
    assert len(names) > 300
    for name in names:
        function: Any = _resolve(name)[0]
        assert torch.Tag.nondeterministic_seeded not in function.tags or WITH_DROPOUT in name, name


def test_what_draws_reads_or_writes_is_no_operation_of_a_file() -> None:
    others = ("rand", "bernoulli", "dropout", "multinomial", "from_file", "save", "load", "set_", "resize_", "record")
    assert not [name for name in OPERATIONS if any(other in name.split(".")[1] for other in others)]
