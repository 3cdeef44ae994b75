"""Every code block of the README is run, and what the documents say of tables, tests and links is true."""

import re
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from benchmarks import speed_tables
from docs.build.execution import Pages
from docs.build.readme_table import with_layouts_table
from mixer_equiv import LAYOUTS
from mixer_equiv.checkpoints.formats import SUFFIXES
from mixer_equiv.cli.exit_status import EXIT_STATUS
from mixer_equiv.formulation import CHANNELS_CHOICES, PATCH_CHOICES, TOKENS_CHOICES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line[:2] == "$ "]


def test_the_readme_is_a_program_that_runs() -> None:
    pages = Pages()
    shown = pages.run("README.md", README, {"given": ["Mixer-B_16.npz"]})
    assert "mixer_b16_timm.safetensors (timm)" in shown
    names = pages.names["README.md"]
    assert [name for name in names if name.startswith("test_")] == ["test_my_mixer"]
    names["test_my_mixer"]()


def test_the_readme_has_what_a_new_user_needs_on_few_screens() -> None:
    assert [kind for kind, _ in BLOCKS] == ["console"] * 3 + ["python", "console", "python", "python"]
    assert len(README.encode()) < 11_000


def test_the_make_commands_are_targets() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[1] for words in map(str.split, COMMANDS) if words[0] == "make"}
    assert named == {"verify", "test"}
    assert named <= set(targets)


def test_the_layouts_table_is_the_registry_s() -> None:
    assert with_layouts_table(README) == README
    assert all(f"| `{name}`" in README for name in LAYOUTS)


def test_a_table_that_is_out_of_date_is_seen() -> None:
    assert with_layouts_table(README.replace("| both ways |", "| no |", 1)) == README


@pytest.mark.parametrize("path", speed_tables.TABLES)
def test_the_tables_of_speed_are_those_of_the_recorded_results(path: str) -> None:
    document = (ROOT / path).read_text()
    assert speed_tables.with_table(document, speed_tables.TABLES[path]) == document
    assert speed_tables.with_table(document, lambda: "other\n") != document


def test_the_formats_table_has_every_suffix() -> None:
    rows = [line for line in PAGES["docs/reference/files.md"].splitlines() if line.startswith("|")]
    assert all(any(f"`{suffix}`" in row for row in rows) for suffix in SUFFIXES)


def test_the_verdicts_table_has_every_exit_status() -> None:
    for verdict, status in EXIT_STATUS.items():
        page = PAGES["docs/how-to/report.md"]
        row = next((line for line in page.splitlines() if line.startswith(f"| `{verdict}` |")), "")
        assert row.endswith(f"| {status} |")


def suite() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}


def named_tests(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


def test_the_tests_that_prove_claims_exist() -> None:
    named = named_tests("".join(PAGES.values()))
    assert len(named) >= 6
    assert named <= suite()


def test_a_claim_whose_test_is_gone_is_seen() -> None:
    page = PAGES["docs/how-to/formulations.md"]
    assert not named_tests(page.replace("`test_the_", "`test_that_the_")) <= suite()


def test_every_formulation_of_the_claims_is_one() -> None:
    page = PAGES["docs/how-to/formulations.md"]
    rows = [row for row in page.splitlines() if row.startswith("| ") and "`test_" in row]
    told = " ".join(rows)
    named = set(re.findall(r'"(\w+)"', told))
    assert {"linear", "linear_channels_first", "depthwise_conv", "shared_conv", "conv1d"} <= named
    assert named <= {*PATCH_CHOICES, *TOKENS_CHOICES, *CHANNELS_CHOICES}


def test_links_inside_the_docs_lead_somewhere() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        prose = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^):]+)\)", prose):
            file, _, heading = target.partition("#")
            assert (ROOT / file).exists(), target
            assert not heading or heading in _anchors((ROOT / (file or name)).read_text()), target


def _anchors(document: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
