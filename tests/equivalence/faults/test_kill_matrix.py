"""The kill matrix: every planted fault is named by `verify`, and what the usual checks miss."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from mixer_equiv.checkpoints.differences import HANDOVERS
from mixer_equiv.cli import app
from mixer_equiv.equivalence.faults import kill_matrix as mutation
from mixer_equiv.equivalence.faults.catalogue import CODE, NOTICES
from mixer_equiv.equivalence.faults.planted_code import HANDED_OVER, PLANTED, Planted, PlantedMixer
from mixer_equiv.layouts import CONSTRAINTS


@pytest.fixture(scope="module")
def matrix() -> Any:
    return mutation.mutate()


def test_verify_names_every_planted_fault_and_nothing_where_there_is_none(matrix: Any) -> None:
    assert [row.fault for row in matrix.outcomes] == ["none", *PLANTED, *HANDED_OVER]
    assert [row.kind for row in matrix.outcomes] == ["none", *(p.kind for p in PLANTED.values()), *["port"] * 11]
    assert [row.fault for row in matrix.outcomes if not row.named] == []
    assert matrix.outcomes[0].verdict == "equivalent"
    assert not any(matrix.outcomes[0].fresh.values())
    assert not any(matrix.outcomes[0].random.values())


def test_a_fresh_model_hides_nearly_every_fault_from_other_checks(matrix: Any) -> None:
    """The head of zeros gives zeros, whatever comes before; only what comes after, or counts, shows."""
    for check, (fresh, _) in matrix.killed.items():
        assert fresh <= (5 if check == "count" else 1)


def test_tolerances_miss_the_faults_that_every_port_has(matrix: Any) -> None:
    rows = {row.fault: row for row in matrix.outcomes}
    for check in ("1e-3", "1e-4", "cosine", "PCC", "count"):
        assert not rows["eps 1e-5"].random[check]
    for check in ("1e-3", "cosine", "PCC", "count"):
        assert not rows["activation: erf GELU"].random[check]


def test_every_code_fault_of_the_catalogue_is_planted_or_beyond_it() -> None:
    planted = {row.cause for row in PLANTED.values() if row.kind == "code"}
    assert {row.cause for row in PLANTED.values() if row.kind == "constraint"} == set(CONSTRAINTS)
    ported = {cause for _, cause in HANDED_OVER.values()}
    assert ported == {*HANDOVERS, "stem_flattened", "head_not_loaded", "last_place"} - {
        "rounded_to_float16",
        "rounded_to_float32",
    }
    assert {row.cause for row in PLANTED.values() if row.kind == "notice"} == NOTICES
    assert planted <= set(CODE)
    assert set(CODE) - planted == {
        "layer_norm_mean",
        "residual",
        "extra_layer",
        "extra_scale",
        "extra_bias",
        "extra_affine",
        "reshape",
        "extra_activation",
        "extra_layer_norm",
        "constant",
        "preprocessing",
        "unknown",
    }


def test_a_fault_that_is_not_named_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutation, "verify", lambda *args, **kwargs: _Nothing())
    monkeypatch.setattr("mixer_equiv.equivalence.faults.planted_code.PLANTED", {"eps 1e-5": PLANTED["eps 1e-5"]})
    monkeypatch.setattr("mixer_equiv.equivalence.faults.planted_code.HANDED_OVER", {})
    result = CliRunner().invoke(app, ["mutate", "--json", "-"], catch_exceptions=False)
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["rows"]
    assert [(row["fault"], row["named"]) for row in rows] == [("none", True), ("eps 1e-5", False)]
    assert PlantedMixer(mutation.CONFIG).weights["head/kernel"].shape == (20, 7)


class _Nothing:
    verdict = "equivalent"
    causes = notices = ()


def test_what_is_planted_wrongly_is_not_called_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of row can fail: another cause than the one planted, or a warning that is not given."""
    wrong = {
        "eps 1e-5": Planted("code", "activation", PLANTED["eps 1e-5"].doing),
        "no stem bias": Planted("constraint", "tied_blocks", held={"stem/bias": None}),
        "dropout": Planted("notice", "train_mode"),
    }
    monkeypatch.setattr("mixer_equiv.equivalence.faults.planted_code.PLANTED", wrong)
    monkeypatch.setattr(
        "mixer_equiv.equivalence.faults.planted_code.HANDED_OVER",
        {"nothing": (lambda weights, config: weights, "zeroed")},
    )
    matrix = mutation.mutate()
    assert {row.fault: row.named for row in matrix.outcomes} == {
        "none": True,
        **dict.fromkeys(["eps 1e-5", "no stem bias", "dropout", "nothing"], False),
    }
    assert not matrix.all_named
