"""The search alone, on a program that is no Mixer, and the values that tell how a step differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mixer_equiv.equivalence.deviation import Arithmetic, Choice, Deviation, Epsilon, ResultOf
from mixer_equiv.equivalence.match.parameter_search import AbsentParameter, AssignedOperand
from mixer_equiv.equivalence.match.program_search import PartialMatch, WholeMatch, find_program
from mixer_equiv.equivalence.match.step_variants import MLP_ACTIVATIONS, variants
from mixer_equiv.equivalence.record.torch import record
from mixer_equiv.operations import Parameter, Program, Recorder, Step

AXES = {
    "first/kernel": ("features", "hidden"),
    "first/bias": ("hidden",),
    "last/kernel": ("hidden", "classes"),
    "last/bias": ("classes",),
}


def mlp() -> Program:
    """A Dense, a GELU and a Dense."""

    def model(operations: Any, parameters: Any, x: Any) -> dict[str, Any]:
        hidden = operations.linear(x, parameters["first/kernel"], parameters["first/bias"])
        active = operations.activate(hidden, "gelu_tanh")
        return {"logits": operations.linear(active, parameters["last/kernel"], parameters["last/bias"])}

    return Recorder("").program(model, {name: Parameter(name, axes) for name, axes in AXES.items()})


def searched(module: nn.Module) -> WholeMatch | PartialMatch:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, 5))
    trace = record(module, (torch.from_numpy(inputs),), lambda name, shape: rng.standard_normal(shape))
    return find_program(trace, inputs, [mlp()])


def test_a_program_that_is_no_mixer_is_found_with_its_parameters() -> None:
    match = searched(nn.Sequential(nn.Linear(5, 7), nn.GELU("tanh"), nn.Linear(7, 3, bias=False)))
    assert isinstance(match, WholeMatch)
    assert match.residual <= 1e-12
    assert match.deviations == ()
    names = {
        name: assignment.operand.name
        for name, assignment in match.assignments.items()
        if isinstance(assignment, AssignedOperand)
    }
    assert names == {"first/kernel": "0.weight", "first/bias": "0.bias", "last/kernel": "2.weight"}
    assert match.assignments["last/bias"] == AbsentParameter((3,))


def test_a_step_that_differs_is_named_and_the_rest_is_found() -> None:
    match = searched(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)))
    assert isinstance(match, WholeMatch)
    assert match.deviations == (Deviation("first/activate", "variant", "activation", "gelu_tanh", "relu"),)


def test_an_activation_that_no_config_has_is_one_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MLP_ACTIVATIONS, "softsign", lambda x: x / (1 + np.abs(x)))
    instead = searched(nn.Sequential(nn.Linear(5, 7), nn.Softsign(), nn.Linear(7, 3)))
    assert isinstance(instead, WholeMatch)
    assert instead.deviations == (Deviation("first/activate", "variant", "softsign", "gelu_tanh", "softsign"),)
    beside = searched(nn.Sequential(nn.Linear(5, 7), nn.GELU("tanh"), nn.Softsign(), nn.Linear(7, 3)))
    assert isinstance(beside, WholeMatch)
    assert [(d.kind, d.what, d.found) for d in beside.deviations] == [("insert", "activation", "softsign")]


def test_another_program_is_found_up_to_where_it_parts() -> None:
    match = searched(nn.Sequential(nn.Linear(5, 7), nn.Softsign()))
    assert isinstance(match, PartialMatch)
    assert match.missing == "first/activate"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Arithmetic("*", 2.0), "* 2"),
        (Arithmetic("+", 1 / 3), "+ 0.3333333333333333"),
        (Epsilon(1e-5), "eps 1e-05"),
        (ResultOf("stem"), "the result of stem"),
        (Choice.NORMALISED_STREAM, "the normalised stream"),
    ],
)
def test_settings_are_told_in_words(setting: object, words: str) -> None:
    assert f"{setting}" == words


def test_what_is_added_in_the_place_of_the_stream_is_named_by_its_own_step() -> None:
    rng = np.random.default_rng(0)
    stream, branch, *earlier = rng.standard_normal((5, 2, 3))
    steps = [
        Step(name, operation, (0,)) for name, operation in (("a", "layer_norm"), ("b", "add"), ("c", "layer_norm"))
    ]
    add = Step("add", "add", (0, 1))
    found = [
        variant.change.found for variant in variants(add, (stream, branch), list(zip(steps, earlier, strict=True)))
    ]
    assert found == [Choice.NORMALISED_STREAM, ResultOf("b"), ResultOf("a")]
