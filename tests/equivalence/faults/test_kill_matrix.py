"""The kill matrix: every planted fault is named by `verify`, and what the usual checks miss."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from mixer_equiv.cli import app
from mixer_equiv.equivalence.faults import kill_matrix
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from mixer_equiv.equivalence.faults.planted_code import PlantedCode, PlantedMixer
from mixer_equiv.equivalence.faults.planted_weights import PLANTED_WEIGHTS, PlantedWeights

PLANTED = kill_matrix.planted_in_code()


@pytest.fixture(scope="module")
def matrix() -> Any:
    return kill_matrix.mutate()


def test_verify_names_every_planted_fault_and_nothing_where_there_is_none(matrix: Any) -> None:
    every: list[PlantedCode | PlantedWeights] = [*PLANTED.values(), *PLANTED_WEIGHTS.values()]
    kinds = [CATALOGUE[planted.fault].kind for planted in every]
    assert [outcome.fault for outcome in matrix.outcomes] == ["none", *PLANTED, *PLANTED_WEIGHTS]
    assert [outcome.kind for outcome in matrix.outcomes] == ["none", *kinds]
    assert [outcome.fault for outcome in matrix.outcomes if not outcome.named] == []
    assert len(matrix.outcomes) == kill_matrix.count_outcomes()
    assert matrix.outcomes[0].verdict == "equivalent"
    assert not any(matrix.outcomes[0].fresh.values())
    assert not any(matrix.outcomes[0].random.values())


def test_every_planted_fault_has_the_verdict_of_its_row_in_the_catalogue(matrix: Any) -> None:
    planted: dict[str, PlantedCode | PlantedWeights] = {**PLANTED, **PLANTED_WEIGHTS}
    verdicts = {outcome.fault: outcome.verdict for outcome in matrix.outcomes[1:]}
    assert verdicts == {name: CATALOGUE[fault.fault].verdict for name, fault in planted.items()}


def test_a_fresh_model_hides_nearly_every_fault_from_other_checks(matrix: Any) -> None:
    """The head of zeros gives zeros, whatever comes before; only what comes after, or counts, shows."""
    kinds = {name: CATALOGUE[planted.fault].kind for name, planted in PLANTED.items()}
    of_other_parameters = {name for name, planted in PLANTED.items() if planted.extra or kinds[name] == "constraint"}
    for check, (fresh, _) in matrix.killed.items():
        noticed = {outcome.fault for outcome in matrix.faults if outcome.fresh[check]}
        if check == "count":
            assert noticed == of_other_parameters
        else:
            assert noticed <= {"softmax output", "one weight NaN", "later images of a batch moved"}
        assert fresh <= (1 if check in ("cosine", "PCC") else len(noticed))


def test_tolerances_miss_the_faults_that_every_port_has(matrix: Any) -> None:
    rows = {outcome.fault: outcome for outcome in matrix.outcomes}
    for check in ("1e-3", "1e-4", "cosine", "PCC", "count"):
        assert not rows["eps 1e-5"].random[check]
    for check in ("1e-3", "cosine", "PCC", "count"):
        assert not rows["activation: erf GELU"].random[check]


def test_a_fault_that_is_not_named_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = "mixer_equiv.equivalence.faults"
    monkeypatch.setattr(kill_matrix, "verify", lambda *args, **kwargs: _Nothing())
    monkeypatch.setattr(kill_matrix, "planted_in_code", lambda: {"eps 1e-5": PLANTED["eps 1e-5"]})
    monkeypatch.setattr(f"{tables}.planted_weights.PLANTED_WEIGHTS", {})
    result = CliRunner().invoke(app, ["mutate", "--json", "-"], catch_exceptions=False)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["rows"]
    assert [(row["fault"], row["named"]) for row in rows] == [("none", True), ("eps 1e-5", False)]
    assert PlantedMixer(kill_matrix.CONFIG).weights["head/kernel"].shape == (20, 7)


class _Nothing:
    verdict = "equivalent"
    equivalent = True
    causes = warnings = notices = ()


def test_what_is_planted_wrongly_is_not_called_named() -> None:
    """Each kind of row can fail: another cause than the one planted, or a warning that is not given."""
    matrix = kill_matrix.mutate(
        code={
            "eps 1e-5": PlantedCode("activation", PLANTED["eps 1e-5"].doing),
            "no stem bias": PlantedCode("tied_blocks", held={"stem/bias": None}),
            "dropout": PlantedCode("train_mode"),
        },
        weights={"nothing": PlantedWeights("zeroed", lambda weights, config: weights)},
    )
    assert {outcome.fault: outcome.named for outcome in matrix.outcomes} == {
        "none": True,
        **dict.fromkeys(["eps 1e-5", "no stem bias", "dropout", "nothing"], False),
    }
    assert not matrix.all_named
