"""Reports read back from JSON: nothing is lost, and nothing else is taken for a report."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import pytest

from mixer_equiv import Report, ReportError, verify
from mixer_equiv.equivalence.plain import PlainDataError, from_plain, to_plain
from mixer_equiv.equivalence.report import FORMAT_VERSION, Stage
from mixer_equiv.render import to_html, to_markdown
from tests.support.reports import REPORTS, full_report

FULL = full_report()


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_round_trip_is_exact(report: Report) -> None:
    again = Report.from_json(report.to_json())
    assert again.to_json() == report.to_json()
    assert to_html(again) == to_html(report)
    assert (again == report) is ("Infinity" not in json.dumps(dataclasses.asdict(report)))


def test_a_report_of_verify_comes_back_whole() -> None:
    report = verify("torch", "reference", kwargs={"num_blocks": 2}, gradients=True, train_steps=1)
    assert Report.from_json(report.to_json()) == report
    assert report.shapes.keys() == report.mapping.keys()
    assert report.shapes["head/bias"] == (7,)
    assert report.gradients is not None
    assert report.gradients.by_parameter.keys() == report.mapping.keys()
    assert max(report.gradients.by_parameter.values()) == report.gradients.residual


def test_every_field_is_in_the_report_that_is_read_back() -> None:
    """A field at its default would come back whatever the reader did with it."""
    for field in dataclasses.fields(Report):
        if field.default is not dataclasses.MISSING:
            assert getattr(FULL, field.name) != field.default, field.name
        elif field.default_factory is not dataclasses.MISSING:
            assert getattr(FULL, field.name) != field.default_factory(), field.name


def test_a_residual_that_is_no_number_comes_back_as_none_at_all() -> None:
    report = dataclasses.replace(FULL, residual=math.inf, stages=(Stage("stem", math.nan, math.inf, 0.0),))
    again = Report.from_json(report.to_json())
    assert again.residual is None
    assert math.isnan(again.stages[0].residual_a)
    assert again.to_json() == report.to_json()


def changed(**fields: Any) -> str:
    return json.dumps({**FULL.to_dict(), **fields})


WRONG = {
    "no JSON": ("{", "it is not JSON of Unicode text"),
    "deep": ("[" * 100_000, "it is not JSON of Unicode text"),
    "half a character": (changed(names=["\ud800"]), "it is not JSON of Unicode text"),
    "a list": ("[]", "it is no report of verify; write one by: mixer-equiv verify ... --json FILE"),
    "another object": ('{"verdict": "equivalent"}', "it is no report of verify"),
    "no version": (changed(format_version=None), "it has no format_version"),
    "newer": (changed(format_version=FORMAT_VERSION + 1), "format version 2, and this mixer_equiv reads version 1"),
    "odd version": (changed(format_version=True), "format version True"),
    "verdict": (changed(verdict="fine"), "verdict is 'fine', not 'equivalent' or 'equivalent_under' or"),
    "text for a number": (changed(residual="0"), "residual is '0', not a number"),
    "a huge number": (changed(residual=10**400), "residual is .*, not a number"),
    "truth for a number": (changed(num_images=True), "num_images is True, not a whole number"),
    "a fraction": (changed(num_images=1.5), "num_images is 1.5, not a whole number"),
    "text for a list": (changed(warnings="none"), "warnings is 'none', not a list"),
    "numbers for texts": (changed(warnings=["a", 3]), r"warnings\[1\] is 3, not text"),
    "a list for an object": (changed(mapping=[]), r"mapping is \[\], not an object"),
    "an item": (changed(visible={"eps": "no"}), r"visible\['eps'\] is 'no', not a number"),
    "unknown field": (changed(verdikt="different"), "verdikt is unknown"),
    "a part": (changed(stages=[{"name": "stem"}]), r"stages\[0\]\.residual is missing; .*residual_b is missing"),
    "one side": (changed(sides=FULL.to_dict()["sides"][:1]), "sides are 1, not 2 or none"),
    "stages alone": (changed(sides=[]), "there are stages and no sides"),
    "precision": (changed(dtype="int3"), "dtype is 'int3', not float32, bfloat16, float16"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        Report.from_json(text)


def test_an_error_lists_all_problems() -> None:
    with pytest.raises(ReportError, match=r"verdict is 7.*; residual is \[\], .*; warnings is 5, .* and 1 more$"):
        Report.from_json(changed(verdict=7, residual=[], names=3, warnings=5, images=6))


ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1e-300,
    1.7e308,
    "",
    "\x1b[31m\u202e",
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"a": 1},
)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Report)])
def test_whatever_is_read_can_be_drawn(field: str) -> None:
    """Each field, and each field of the objects below it, is exchanged for odd values."""
    plain = FULL.to_dict()
    texts = [changed(**{field: odd}) for odd in ODD]
    below = plain[field][0] if isinstance(plain[field], list) else plain[field]
    if isinstance(below, dict):
        for name in itertools.islice(below, 12):
            for odd in ODD:
                one = {**below, name: odd}
                texts.append(changed(**{field: [one, *plain[field][1:]] if isinstance(plain[field], list) else one}))
    accepted = 0
    for text in texts:
        try:
            report = Report.from_json(text)
        except ReportError:
            continue
        accepted += 1
        assert str(report)
        assert report.summary()
        assert to_html(report)
        assert to_markdown(report)
    assert accepted < len(texts)


@dataclasses.dataclass(frozen=True)
class _Part:
    size: float | None
    name: str = "none"


def test_plain_data_name_the_place_of_a_problem() -> None:
    assert from_plain(_Part, to_plain(_Part(3.0, "a"))) == _Part(3.0, "a")
    assert from_plain(_Part, {"size": 3}) == _Part(3.0)
    with pytest.raises(PlainDataError) as caught:
        from_plain(_Part, {"name": 3, "more": 1})
    assert caught.value.problems == ("more is unknown", "size is missing", "name is 3, not text")
    with pytest.raises(PlainDataError, match="it is 3, not an object"):
        from_plain(_Part, 3)
