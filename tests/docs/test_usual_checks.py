"""The picture of what usual checks miss: every fault is in one family, and every number is right and readable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from docs.build import usual_checks
from mixer_equiv.equivalence.faults import kill_matrix
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from mixer_equiv.equivalence.faults.kill_matrix import KillMatrix, Outcome
from tests.support.colours import contrast

COLUMNS = 2 * len(usual_checks.CHECKS) + 1


def outcome(fault: str, fresh: Sequence[str] = (), random: Sequence[str] = (), named: bool = True) -> Outcome:
    noticed = [{check: check in seen for check in usual_checks.CHECKS} for seen in (fresh, random)]
    return Outcome(fault, "code", *noticed, "different", (fault,), named)


MATRIX = KillMatrix(
    (
        outcome("relu", random=["1e-3", "1e-4"]),
        outcome("silu", random=["1e-4"], named=False),
        outcome("no stem bias", fresh=["count"], random=["count"]),
    )
)
CAUSES = {"relu": "activation", "silu": "activation", "no stem bias": "absent_parameters"}


def numbers_in(svg: str) -> dict[str, list[int]]:
    """The numbers of each line of the picture, the first of which is that of its faults."""
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    names = [*usual_checks.FAMILIES, "all"]
    return {name: [int(text) for text in texts[texts.index(name) + 1 :][: COLUMNS + 1]] for name in names}


def test_every_fault_of_the_catalogue_is_in_one_family() -> None:
    ids = [fault for family in usual_checks.FAMILIES.values() for fault in family]
    assert sorted(ids) == sorted(fault.id for fault in CATALOGUE.values() if fault.kind != "notice")


def test_every_check_has_a_column() -> None:
    assert set(usual_checks.CHECKS) == {kill_matrix.COUNT, *kill_matrix.CHECKS}


def test_a_cell_has_the_number_of_faults_that_a_check_notices() -> None:
    numbers = numbers_in(usual_checks.draw(MATRIX, CAUSES))
    # faults; fresh: count, 1e-3, 1e-4, 1e-5, close, cosine, PCC; random: the same; verify
    assert numbers["another activation"] == [2, *(0, 0, 0, 0, 0, 0, 0), *(0, 1, 2, 0, 0, 0, 0), 1]
    assert numbers["shared or absent parameters"] == [1, *(1, 0, 0, 0, 0, 0, 0), *(1, 0, 0, 0, 0, 0, 0), 1]
    assert numbers["residual connections"] == [0] * (COLUMNS + 1)
    assert numbers["all"] == [3, *(1, 0, 0, 0, 0, 0, 0), *(1, 1, 2, 0, 0, 0, 0), 2]


def test_the_same_matrix_gives_the_same_picture() -> None:
    assert usual_checks.draw(MATRIX, CAUSES) == usual_checks.draw(MATRIX, CAUSES)


def test_every_number_has_enough_contrast_on_its_cell() -> None:
    shares = [i / 100 for i in range(101)]
    assert [share for share in shares if contrast(*usual_checks.shade(share)) < 4.5] == []


def test_a_cell_is_darker_where_more_faults_are_noticed() -> None:
    on_black = [contrast(usual_checks.shade(i / 10)[0], "#000000") for i in range(11)]
    assert on_black == sorted(on_black, reverse=True)


def test_the_picture_has_a_title_a_description_and_a_white_card() -> None:
    svg = usual_checks.draw(MATRIX, CAUSES)
    assert "Noticed, of 3 planted faults: fresh model (count and shape: 1, allclose 1e-3: 0, " in svg
    assert "; the cause named (verify: 2)." in svg
    assert re.search(r'<rect width="760" height="\d+" rx="8" fill="#fff"/>', svg)
