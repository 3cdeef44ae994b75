"""Pages of reports in Chromium: they fit, work by keyboard and without a script, and load nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixer_equiv import Report
from mixer_equiv.render import reports_to_html, to_html
from tests.support.browser import Opened, launched, open_page
from tests.support.reports import REPORTS, full_report

pytestmark = pytest.mark.browser

FILES = {f"{name}.json": report for name, report in REPORTS.items()}
PAGES = {**{name: to_html(report) for name, report in REPORTS.items()}, "several": reports_to_html(FILES)}
WIDTHS = 400, 1280

Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def open_(browser: Any, tmp_path: Path) -> Iterator[Open]:
    opened: list[Opened] = []

    def opening(text: str, **options: Any) -> Opened:
        opened.append(open_page(browser, tmp_path / f"page {len(opened)}.html", text, **options))
        return opened[-1]

    yield opening
    for each in opened:
        each.page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_every_window_and_loads_nothing(name: str, open_: Open) -> None:
    opened = open_(PAGES[name])
    if name != "several":
        opened.open_details()
    assert [wide for width in WIDTHS for wide in opened.overflowing(width)] == []
    assert opened.requests[0] == opened.page.url
    assert opened.from_elsewhere == []
    assert opened.console == []


# Every verdict, each with all that a page may have.
@pytest.mark.parametrize(
    "name", ["with a warning", "explained", "different", "inexpressible", "not a number", "several"]
)
def test_axe_finds_nothing_in_light_and_dark(name: str, open_: Open) -> None:
    opened = open_(PAGES[name])
    if name != "several":
        opened.open_details()
    assert opened.violations("light") + opened.violations("dark") == []


def test_a_telephone_s_page_has_the_same_rows_and_cells_for_a_screen_reader(open_: Open) -> None:
    opened = open_(PAGES["explained"])
    opened.open_details()
    snapshots = []
    for width in WIDTHS:
        opened.page.set_viewport_size({"width": width, "height": 900})
        snapshots.append(opened.page.locator("table").first.aria_snapshot())
    assert snapshots[0] == snapshots[1]
    assert snapshots[0].startswith('- table "Causes, with their places in the code or weights":')
    assert '- columnheader "found"' in snapshots[0]
    assert '- rowheader "layer norm eps"' in snapshots[0]


def test_a_screen_reader_finds_headings_figure_and_regions(open_: Open) -> None:
    shown = open_(PAGES["explained"]).page.locator("body").aria_snapshot()
    assert shown.index("- banner:") < shown.index("- main:") < shown.index("- contentinfo:")
    for part in (
        '- heading "NOT EQUIVALENT, explained (equivalent_under)" [level=1]',
        '- region "Causes":',
        '- heading "Residuals by stage" [level=2]',
        '- img "float64 residual between the two, by stage"',
        '- button "Copy call"',
    ):
        assert part in shown
    description = open_(PAGES["explained"]).page.locator("svg desc").text_content()
    assert description == (
        "Residuals of 28 stages on a logarithmic scale: 1.0e-16 at stem, 3.7e-06 at logits, "
        "over the threshold of 1e-12 from block 0 token mixing on."
    )


def test_arrays_are_filtered_and_sorted_by_keyboard_alone(open_: Open) -> None:
    opened = open_(PAGES["equivalent"], width=400)
    page, table = opened.page, opened.page.locator("#this-arrays-table")
    opened.tab_to("details:has(#this-arrays-table) > summary")
    page.keyboard.press("Enter")
    opened.tab_to("#this-arrays-table-filter")
    status = page.locator("#this-arrays-table-filter ~ [role=status]")
    assert status.text_content() == "150 of 150 rows"
    page.keyboard.type("MixerBlock_1 dense_0 KERNEL")
    assert status.text_content() == "6 of 150 rows"
    assert table.locator("tbody tr:visible").count() == 6

    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    assert status.text_content() == "150 of 150 rows"
    opened.tab_to("#this-arrays-table th:has-text('gradients apart') button")
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    heading = table.get_by_role("columnheader", name="gradients apart")
    assert heading.get_attribute("aria-sort") == "descending"
    shown = [float(text) for text in table.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > shown[-1]

    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "none"
    sizes = [tuple(map(int, text.split(" x "))) for text in table.locator("tbody td:nth-child(3)").all_inner_texts()]
    assert sizes == sorted(sizes)


def test_names_are_sorted_as_people_count_and_what_is_missing_is_last(open_: Open) -> None:
    page = open_(PAGES["several"]).page
    for times in (1, 2):
        page.get_by_role("button", name="outputs").click()
        shown = page.locator("#models-by-checks tbody td:nth-child(3)").all_inner_texts()
        assert [text == "not compared" for text in shown] == [False] * 4 + [True] * 5, times
    opened = open_(PAGES["equivalent"])
    opened.open_details()
    opened.page.get_by_role("button", name="official name").click()
    names = opened.page.locator("#this-arrays-table tbody th").all_inner_texts()
    assert names.index("MixerBlock_2/LayerNorm_0/bias") < names.index("MixerBlock_10/LayerNorm_0/bias")


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_command_is_copied_whole(has_clipboard: bool, open_: Open) -> None:
    """A page from an insecure address has no `navigator.clipboard`."""
    opened = open_(PAGES["equivalent"], width=400)
    if not has_clipboard:
        opened.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    opened.tab_to("button.copy")
    opened.page.keyboard.press("Enter")
    opened.page.get_by_text("Copied", exact=True).wait_for(timeout=5000)
    opened.open_details()
    opened.page.locator("#this-arrays-table-filter").focus()
    opened.page.keyboard.press("Control+v")
    made = REPORTS["equivalent"].provenance
    assert made is not None
    assert opened.page.locator("#this-arrays-table-filter").input_value() == made.call


@pytest.mark.parametrize("script", [True, False])
def test_a_model_s_name_leads_to_its_details(script: bool, open_: Open) -> None:
    page = open_(PAGES["several"], script=script).page
    details = page.locator("#report-4").get_by_text("no known fault explains")
    assert not details.is_visible()
    page.locator("#models-by-checks a").nth(3).click()
    details.wait_for(state="visible", timeout=5000)


def test_without_a_script_everything_is_there_and_no_control_is_dead(open_: Open) -> None:
    page = open_(PAGES["equivalent"], script=False).page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("#this-arrays-table tbody tr:visible").count() == 150
    assert page.get_by_role("button").count() == page.get_by_role("searchbox").count() == 0


HOSTILE = '"><img src=x onerror="hacked = 1"></script></style><script>hacked = 1</script>{{ 7 * 7 }}\'&lt;\x1b'


def hostile(value: Any) -> Any:
    """Plain data with markup in every text and name that is free."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, dict):
        fixed = {"format_version", "verdict", "dtype", "kind"}
        return {
            name if name.isidentifier() else name + HOSTILE: item if name in fixed else hostile(item)
            for name, item in value.items()
        }
    return [hostile(item) for item in value] if isinstance(value, list) else value


def test_a_stranger_s_names_are_text_and_still_fit(open_: Open) -> None:
    report = Report.from_dict(hostile(full_report().to_dict()))
    for page, name in ((to_html(report), "h1"), (reports_to_html({HOSTILE: report}), "#models")):
        opened = open_(page)
        opened.open_details()
        assert opened.page.locator(name).count() == 1
        assert opened.page.locator("script").count() == 1
        assert opened.page.locator("img:not([role])").count() == 0
        assert opened.page.evaluate("typeof hacked") == "undefined"
        assert "{{ 7 * 7 }}" in (opened.page.locator("main").text_content() or "")
        assert [wide for width in WIDTHS for wide in opened.overflowing(width)] == []
        assert opened.console == []


# Faults of a page, and what must see each.
FAULTS: dict[str, tuple[str, str, Callable[[Opened], Any]]] = {
    "text is not broken": ("overflow-wrap: anywhere", "overflow-wrap: normal", lambda o: o.overflowing(400)),
    "rows are not stacked": ("max-width: 48rem", "max-width: 1rem", lambda o: o.overflowing(400)),
    "a cell is cut": (".soft, .line {", ".soft, .line { overflow: hidden; width: 5px;", lambda o: o.overflowing(1280)),
    "pale text": ("--soft: #555b63", "--soft: #bbbbbb", lambda o: o.violations("light")),
    "dim text in the dark": ("--soft: #a7aeb7", "--soft: #444444", lambda o: o.violations("dark")),
    "no label": ("<label for=", "<label data-for=", lambda o: o.violations()),
    "an image from elsewhere": ("<main>", '<main><img src="https://example.org/a.png">', lambda o: o.from_elsewhere),
    "a script of somebody else": ("<main>", "<main><script>1</script>", lambda o: o.console),
    "a mistake in the script": ('"use strict";', '"use strict"; nothing();', lambda o: o.console),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_page_are_seen(fault: str, open_: Open) -> None:
    good, bad, see = FAULTS[fault]
    text = PAGES["with a warning"]
    assert good in text
    wrong = text.replace(good, bad)
    if fault != "a script of somebody else":  # the others are of a page whose policy allows them
        wrong = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", wrong)
    opened = open_(wrong)
    opened.open_details()
    assert see(opened)
