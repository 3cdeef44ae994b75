"""The documentation site in Chromium, opened from its folder: it fits, searches, and loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import launched

pytestmark = pytest.mark.browser
PAGES = (
    "index.html",
    "tutorial/02-mixers.html",
    "how-to/your-model.html",
    "how-to/report.html",
    "explanation/usual-checks.html",
    "reference/command-line.html",
    "reference/layouts.html",
    "reference/speed.html",
    "reference/api/checkpoints.html",
)
_WIDTH = "document.documentElement.scrollWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_a_desktop_and_loads_nothing_from_elsewhere(site: Path, page: Any, name: str) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((site / name).as_uri())
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(_WIDTH) <= width
    assert len(requests) > 3
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:", "blob:"))] == []


def test_a_page_that_is_too_wide_is_seen(site: Path, page: Any) -> None:
    page.goto((site / "index.html").as_uri())
    page.set_viewport_size({"width": 400, "height": 900})
    page.evaluate("document.querySelector('article p').style.width = '500px'")
    assert page.evaluate(_WIDTH) > 400


def test_the_search_box_finds_a_page_without_a_server(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").click()
    page.keyboard.type("hypothesis")
    found = page.locator(".md-search-result__link", has_text="Hypothesis").first
    found.wait_for(timeout=20_000)
    assert "hypothesis" in found.get_attribute("href")


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_palette_follows_the_system(site: Path, page: Any, scheme: Any, is_dark: bool) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto((site / "index.html").as_uri())
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background.strip("rgb()").split(",")[:3]) / 3
    assert (brightness < 128) is is_dark
