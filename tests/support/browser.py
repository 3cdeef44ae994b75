"""What tests ask a page in Chromium: whether it fits, whether it is accessible, and what it tried to load."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

# Elements that stick out of the window to a side, whose content is cut, or whose words are broken into a column of
# letters. A heading that is only for screen readers is one pixel wide.
_OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((element) => {
    if (!element.checkVisibility() || element.closest('thead')?.clientWidth === 1) return false;
    const box = element.getBoundingClientRect();
    const cuts = getComputedStyle(element).overflowX !== 'visible' && element.scrollWidth > element.clientWidth + 1;
    const isSqueezed = element.matches('td > *, th > *') && box.height > 4 * box.width;
    return box.left < -1 || box.right > innerWidth + 1 || isSqueezed || (cuts && element.tagName !== 'INPUT');
}).map((element) => element.outerHTML.slice(0, 120))"""

_FOCUS = """(target) => {
    const { activeElement } = document;
    return [getComputedStyle(activeElement).outlineStyle !== 'none', target === activeElement];
}"""


def need_chromium() -> None:
    """Skip the test, or fail it where `REQUIRE_BROWSER` is set, unless there are Chromium and Playwright."""
    missing = [] if CHROMIUM else ["there is no chromium, chromium-browser or google-chrome on PATH"]
    packages = {"playwright": "playwright", "axe_playwright_python": "axe-playwright-python"}
    missing += [f"{name} is not installed" for module, name in packages.items() if not importlib.util.find_spec(module)]
    if missing and os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(f"REQUIRE_BROWSER is set, and {'; '.join(missing)}")
    if missing:
        pytest.skip("; ".join(missing))


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Chromium, without a window."""
    need_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS])
        yield chromium
        chromium.close()


@dataclasses.dataclass
class Opened:
    """A page, with the addresses that it asked for and what it wrote to the console, errors included."""

    page: Page
    requests: list[str] = dataclasses.field(default_factory=list)
    console: list[str] = dataclasses.field(default_factory=list)

    @property
    def from_elsewhere(self) -> list[str]:
        return [url for url in self.requests if url != self.page.url and not url.startswith("data:")]

    def open_details(self) -> None:
        """Open everything that is folded."""
        self.page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")

    def overflowing(self, width: int) -> list[str]:
        """What is cut, or reaches beyond a window of this width."""
        self.page.set_viewport_size({"width": width, "height": 900})
        found: list[str] = self.page.evaluate(_OVERFLOWING)
        wide: int = self.page.evaluate("document.documentElement.scrollWidth")
        return [*found, *[f"the page is {wide} pixels wide"] * (wide > width)]

    def violations(self, scheme: str = "light") -> list[str]:
        """The rules of axe-core that the page breaks, with the elements; in the dark those of colours alone.

        Rows beyond the fifth of a table, which are as those before, are taken out.
        """
        from axe_playwright_python.sync_playwright import Axe

        self.page.emulate_media(color_scheme=scheme)
        self.page.evaluate("document.querySelectorAll('tbody tr:nth-child(n+6)').forEach((row) => row.remove())")
        options = {"resultTypes": ["violations"], **({"runOnly": ["color-contrast"]} if scheme == "dark" else {})}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]}" for rule in found]

    def tab_to(self, selector: str) -> None:
        """Press Tab until the element has the focus; each element on the way must show that it has it."""
        target = self.page.locator(selector)
        for _ in range(60):
            self.page.keyboard.press("Tab")
            has_outline, is_target = target.evaluate(_FOCUS)
            assert has_outline, self.page.evaluate("document.activeElement.outerHTML")
            if is_target:
                return
        pytest.fail(f"60 times Tab do not lead to {selector}")


def open_page(browser: Browser, path: Path, text: str, *, width: int = 1280, script: bool = True) -> Opened:
    """Write a page to a file and open that, in a window of its own."""
    path.write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, java_script_enabled=script)
    opened = Opened(page)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("console", lambda message: opened.console.append(message.text))
    page.on("pageerror", lambda error: opened.console.append(str(error)))
    page.goto(path.as_uri())
    return opened
