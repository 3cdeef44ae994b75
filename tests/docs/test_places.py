"""Every path, module, name, command and test that the documents mention exists."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "mixer_equiv"
PAGES = tuple(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", *PAGES)
# These two speak of nothing but this repository, so that every name in them must be in it.
HOUSE = "ARCHITECTURE.md", "CONTRIBUTING.md"
# Pieces of code that a document has at least, so that they are found at all; a page may have none.
LEAST_PIECES = {"README.md": 30, **dict.fromkeys(HOUSE, 50)}
TOP = "mixer_equiv", "tests", "benchmarks", "docs", "examples"


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_in(text: str) -> list[str]:
    """The pieces of code in the prose of a document, without those that stand for any name."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if "NAME" not in code]


@cache
def words() -> frozenset[str]:
    """Every word of the source, of the tests and of the Makefile."""
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "conftest.py", ROOT / "mixer_equiv_pytest.py"]
    files += [path for folder in TOP for path in (ROOT / folder).rglob("*.py") if path != Path(__file__)]
    return frozenset(word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8")))


def exists(path: str, folders: tuple[Path, ...]) -> bool:
    return any((folder / path).exists() for folder in folders)


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def is_there(code: str, *, in_house: bool) -> bool:
    """Whether the place that `code` means exists; true for code that means none."""
    if module := re.fullmatch(r"python -m ([\w.]+).*", code):
        return importlib.util.find_spec(module[1]) is not None
    if target := re.fullmatch(r"make ([a-z-]+).*", code):
        return f"\n{target[1]}:" in text_of("Makefile")
    name = code.removesuffix("()")
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", code) and ("/" in code or re.search(r"\.(py|md|toml|txt)$", code)):
        is_path = in_house or code.partition("/")[0] in TOP
        return not is_path or exists(code, (ROOT, PACKAGE) if in_house else (ROOT,))
    if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", name):
        first = name.partition(".")[0]
        if first in TOP:
            return resolves(name)
        return not in_house or not exists_in_package(first) or resolves(f"mixer_equiv.{name}")
    return not in_house or not re.fullmatch(r"[A-Za-z_]\w*", name) or name in words()


def exists_in_package(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_place_in_a_document_exists(document: str) -> None:
    code = code_in(text_of(document))
    assert len(code) > LEAST_PIECES.get(document, -1)
    assert [place for place in code if not is_there(place, in_house=document in HOUSE)] == []


@pytest.mark.parametrize(
    "code",
    [
        "mixer_equiv/nowhere.py",
        "tests/nowhere",
        "mixer_equiv.nowhere",
        "mixer_equiv.config.Nothing",
        "python -m benchmarks.nowhere",
        "make nothing",
    ],
)
def test_a_place_that_is_gone_is_seen(code: str) -> None:
    assert not is_there(code, in_house=False)


@pytest.mark.parametrize(
    "code", ["checkpoints/nowhere.py", "judge/decide.py", "checkpoints.nowhere", "config.Nothing", "NoSuchClass"]
)
def test_a_place_in_the_package_that_is_gone_is_seen(code: str) -> None:
    assert not is_there(code, in_house=True)


@pytest.mark.parametrize("code", ["checkpoints/io.py", "layouts/", "checkpoints.io.load", "MixerConfig", "make test"])
def test_a_place_in_the_package_is_found(code: str) -> None:
    assert is_there(code, in_house=True)


def test_the_laws_of_imports_are_those_that_are_checked() -> None:
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    section = text_of("ARCHITECTURE.md").partition("\n## The laws of imports\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. \*\*(.+?)\.?\*\*", section, re.MULTILINE) == [law["name"] for law in contracts]


def test_the_glossary_is_in_the_order_of_the_alphabet() -> None:
    section = text_of("CONTRIBUTING.md").partition("\n## Words\n")[2].partition("\n## ")[0]
    terms = re.findall(r"^- \*\*(\w+)\*\*", section, re.MULTILINE)
    assert len(terms) >= 13
    assert terms == sorted(terms)
