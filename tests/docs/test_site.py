"""The documentation site: it builds without a warning, shows every public name, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer.main

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from docs.build import api, hooks
from docs.build.public_names import PUBLIC_MODULES, find, names_in, public_names, summary
from mixer_equiv import LAYOUTS, __version__
from mixer_equiv.cli import app
from mixer_equiv.equivalence.faults.catalogue import CATALOGUE
from tests.support.site import build

ROOT = Path(__file__).parents[2]

# Elements that a browser loads by itself, and the attribute that says from where.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


def urls_in(text: str) -> list[str]:
    """What the style sheets in a text load."""
    return re.findall(r"url\(\s*['\"]?([^)'\"\s]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)


class Page(HTMLParser):
    """The places, links and resources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.resources: list[str] = []
        self.feed(text)
        self.resources += urls_in(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if LOADED.get(tag, "") in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.resources.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text()) for path in site.rglob("*.html")}


def from_elsewhere(resources: list[str]) -> list[str]:
    return [url for url in resources if urlsplit(url).netloc]


def dead_links(site: Path, pages: dict[str, Page]) -> list[str]:
    """Links inside the site to no file, or to no place in its file."""
    dead = []
    for name, page in pages.items():
        for link in (link for link in page.links if not urlsplit(link).scheme and name != "404.html"):
            file, _, place = unquote(link).partition("#")
            target = os.path.normpath(os.path.join(os.path.dirname(name), file)) if file else name
            known = pages[target].ids if target in pages else None
            if not (site / target).is_file() or (place and known is not None and place not in known):
                dead.append(f"{name} -> {link}")
    return dead


def test_the_site_has_a_page_for_each_source_and_each_generated_page(site: Path) -> None:
    sources = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert {"index.md", "tutorial/index.md", "how-to/index.md", "explanation/index.md"} <= set(sources)
    for source in (*sources, *hooks.generated_pages()):
        assert (site / source).with_suffix(".html").is_file(), source
    assert not (site / "build").exists()


def test_pages_show_what_their_code_prints(site: Path) -> None:
    for name, said in (
        ("tutorial/04-correct-way.html", "EQUIVALENT"),
        ("how-to/published.html", "(timm)"),
        ("how-to/your-model.html", "NOT EQUIVALENT, explained"),
        ("how-to/hypothesis.html", "1 passed"),
        ("explanation/bug-or-rounding.html", "wrong eps: "),
    ):
        assert said in (site / name).read_text(), name


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    loaded = [url for page in pages.values() for url in page.resources]
    loaded += [url for path in site.rglob("*.css") for url in urls_in(path.read_text())]
    assert len(loaded) > len(pages)
    assert from_elsewhere(loaded) == []
    # The theme would fetch what draws such a diagram.
    assert not [path for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text()]


def test_a_resource_from_elsewhere_is_seen() -> None:
    page = Page(
        '<script src="https://example.org/a.js"></script><link rel="stylesheet" href="//example.org/a.css">'
        '<img src="here.png"><style>a { background: url(https://example.org/a.png) }</style>'
    )
    assert len(from_elsewhere(page.resources)) == 3


def test_links_inside_the_site_lead_somewhere(site: Path, pages: dict[str, Page]) -> None:
    assert sum(len(page.links) for page in pages.values()) > 500
    assert dead_links(site, pages) == []


def test_a_dead_link_is_seen(site: Path, pages: dict[str, Page]) -> None:
    wrong = Page('<a href="nowhere.html"></a><a href="reference/faults.html#nothing"></a><a href="#none"></a>')
    assert len(dead_links(site, {**pages, "wrong.html": wrong})) == 3


def test_search_works_from_a_folder(site: Path, pages: dict[str, Page]) -> None:
    index = (site / "search" / "search_index.js").read_text().removeprefix("var __index = ")
    found = {entry["location"].partition("#")[0] for entry in json.loads(index)["docs"]}
    assert {"reference/layouts.html", "reference/faults.html", "reference/api/checkpoints.html"} <= found
    assert all(any("iframe-worker" in url for url in page.resources) for page in pages.values())


def test_every_page_says_which_version_it_describes(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert f"These pages describe mixer_equiv {__version__}." in page.read_text()


def test_every_public_name_has_one_place(pages: dict[str, Page]) -> None:
    places = Counter(place for page in pages.values() for place in page.ids)
    assert len(public_names()) > 60
    assert {path: places[path] for path in public_names().values() if places[path] != 1} == {}


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_the_public_names_of_a_module_are_those_that_it_exports(module: str) -> None:
    exported = getattr(importlib.import_module(module), "__all__", None)
    if exported is not None:
        assert names_in(module) == [f"{module}.{name}" for name in exported]
    else:
        assert all(hasattr(importlib.import_module(module), name.rpartition(".")[2]) for name in names_in(module))


def test_every_public_name_is_described() -> None:
    assert [path for path in public_names().values() if not summary(path)] == []
    classes = [found for path in public_names() if (found := find(path)).is_class]
    assert len(classes) > 20
    assert [
        member.path
        for found in classes
        for name, member in found.members.items()
        if not name.startswith("_") and (member.is_function or "property" in member.labels) and member.docstring is None
    ] == []


@pytest.mark.parametrize(
    ("names", "message"), [(("load",), "on several: .*mixer_equiv.load"), (("nothing",), "not public: .*nothing")]
)
def test_a_public_name_on_two_pages_is_refused(
    names: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "PAGES", (*api.PAGES, api.Page("more", "More", "", names=names)))
    with pytest.raises(ValueError, match=message):
        api.pages()


def test_a_public_name_on_no_page_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGES", api.PAGES[1:])
    with pytest.raises(ValueError, match=r"on none: .*'mixer_equiv\.load'"):
        api.pages()


def test_the_command_line_has_every_option(pages: dict[str, Page]) -> None:
    program: Any = typer.main.get_command(app)
    places = pages["reference/command-line.html"].ids
    for name, command in program.commands.items():
        assert name in places
        assert {f"{name}-{parameter.name.replace('_', '-')}" for parameter in command.params} <= set(places)


def test_layouts_and_faults_are_those_of_the_tables(site: Path, pages: dict[str, Page]) -> None:
    assert set(LAYOUTS) <= set(pages["reference/layouts.html"].ids)
    assert set(CATALOGUE) <= set(pages["reference/faults.html"].ids)
    shown = (site / "reference" / "layouts.html").read_text().replace("<wbr>", "")
    assert all(row.foreign in shown and row.pattern in shown.replace("&gt;", ">") for row in LAYOUTS["timm"].rows)


def test_a_broken_document_stops_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("mixer_equiv", "mixer_equiv_pytest.py", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "index.md").open("a") as index:
        index.write("\n[a](nowhere.md) [b](tutorial/index.md#nothing) [c][mixer_equiv.nothing]\n")
    (tmp_path / "docs" / "tutorial" / "unlisted.md").write_text("# A page that is not in the navigation\n")
    built = build(tmp_path, tmp_path / "site", run_pages=False)
    assert built.returncode != 0
    for what in ("nowhere.md", "#nothing", "mixer_equiv.nothing", "unlisted.md"):
        assert re.search(rf"WARNING.*{re.escape(what)}", built.stdout, re.DOTALL), built.stdout
    assert "Aborted with 4 warnings" in built.stdout
