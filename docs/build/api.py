"""Pages of the Python reference: which page shows which public names. mkdocstrings writes the rest from docstrings."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from docs.build import pytest_plugin
from docs.build.markdown import block, code, table
from docs.build.public_names import names_in, public_names, summary

FOLDER = "reference/api"


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of the reference.

    It shows the `names` of the package itself, then each of `modules` with all its public names that no page shows by
    their shorter path, then `parts`: classes that are not public by themselves, of which public results consist.
    """

    file: str
    title: str
    introduction: str
    names: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


PAGES = (
    Page(
        "checkpoints",
        "Checkpoints",
        "Read, convert and write weights, and change a head or the image size.",
        names=(
            *("load", "convert", "save", "flax_to_torch", "torch_to_flax", "Checkpoint"),
            *("drop_head", "new_head", "enlarge"),
        ),
    ),
    Page(
        "config",
        "Sizes and conventions",
        "A config has the sizes of a Mixer, and the two settings that shapes do not show.",
        names=("MixerConfig", "Formulation", "Conventions"),
    ),
    Page(
        "verification",
        "Verification",
        "Compare two Mixers, and port weights into a model that nobody described.",
        names=("verify", "port", "layout_of", "Report", "Policy"),
        parts=tuple(
            f"mixer_equiv.equivalence.report.{part}"
            for part in ("Verdict", "Cause", "Stage", "SideReport", "Gradients", "Training")
        ),
    ),
    Page(
        "testing",
        "Tests",
        f"Assertions for a test suite. {pytest_plugin.describe()}",
        names=("assert_equivalent", "compare", "Comparison"),
        modules=("mixer_equiv.testing",),
        parts=("mixer_equiv_pytest.assert_equivalent",),
    ),
    Page(
        "strategies",
        "Hypothesis strategies",
        "Random configs, weights and images for properties.",
        modules=("mixer_equiv.testing.strategies",),
    ),
    Page(
        "layouts",
        "Layouts in Python",
        "The tables themselves are shown under [Layouts](../layouts.md).",
        names=("LAYOUTS", "Layout", "register_layout"),
        modules=("mixer_equiv.layouts",),
    ),
    Page(
        "models",
        "Models",
        "The official Mixer, written once in each framework.",
        modules=tuple(f"mixer_equiv.models{name}" for name in ("", ".torch", ".flax", ".nnx", ".numpy")),
    ),
    Page(
        "render",
        "Reports as pages",
        "A report of `verify` as HTML or Markdown, and several on one page. As plain text it is `print(report)`.",
        modules=("mixer_equiv.render",),
    ),
    Page(
        "errors",
        "Errors and warnings",
        "Every error raised on purpose is a `MixerEquivError`.",
        names=(
            *("MixerEquivError", "ConfigError", "LayoutError", "CheckpointError", "ConversionError"),
            *("InexpressibleError", "NotEquivalentError", "ReportError", "MissingDependencyError", "ConventionWarning"),
        ),
    ),
)


def names_on(page: Page) -> list[str]:
    """Paths of the public names that a page shows, in its order."""
    public = set(public_names().values())
    further = [path for module in page.modules for path in names_in(module) if path in public]
    return list(dict.fromkeys([*(f"mixer_equiv.{name}" for name in page.names), *further]))


def write_page(page: Page) -> str:
    """The page in Markdown, with a directive of mkdocstrings for each object."""
    lines = [f"# {page.title}\n", f"{page.introduction}\n"]
    shown = names_on(page)
    if page.names:
        lines.append(block(_import(page.names), "python"))
    lines += [_directive(path) for path in shown if path.rpartition(".")[0] not in page.modules]
    for module in page.modules:
        lines.append(_directive(module, members=False, full_path=True))
        lines += [_directive(path, level=3) for path in shown if path.rpartition(".")[0] == module]
    names = {path.rpartition(".")[2] for path in shown}
    lines += [_directive(path, full_path=path.rpartition(".")[2] in names) for path in page.parts]
    return "\n".join(lines)


def _import(names: Sequence[str]) -> str:
    """The statement that imports names from the package, in lines that fit a page."""
    line = f"from mixer_equiv import {', '.join(names)}"
    if len(line) <= 80:
        return line
    indent = "    "
    wrapped = textwrap.fill(", ".join(names) + ",", 80, initial_indent=indent, subsequent_indent=indent)
    return f"from mixer_equiv import (\n{wrapped}\n)"


def _directive(path: str, *, level: int = 2, members: bool = True, full_path: bool = False) -> str:
    """A directive for an object, under its name or its full path."""
    options = [f"      heading_level: {level}", f"      show_root_full_path: {str(full_path).lower()}"]
    options += ["      members: false"] * (not members)
    return "\n".join([f"::: {path}", "    options:", *options, ""])


def write_index() -> str:
    """The table of all public names, each with the first line of its docstring and a link to its page."""
    lines = [
        "# Python\n",
        "All public names. Everything else is internal, and may change without notice. `mixer_equiv.bench` is internal "
        "too: its public part is the command [`mixer-equiv bench`](../command-line.md#bench).\n",
    ]
    for page in PAGES:
        rows = [(f"[{code(path.removeprefix('mixer_equiv.'))}][{path}]", summary(path)) for path in names_on(page)]
        lines += [f"## [{page.title}]({page.file}.md) {{ #{page.file} }}\n", table(("name", "purpose"), rows)]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """The Markdown of all pages, by path. Raises `ValueError` for public names that stand on no page or on two."""
    shown = [path for page in PAGES for path in names_on(page)]
    wrong = sorted({path for path in {*shown, *public_names().values()} if shown.count(path) != 1})
    missing = sorted(set(public_names().values()) - set(shown))
    unknown = sorted(set(shown) - set(public_names().values()))
    if wrong or unknown:
        raise ValueError(
            f"each public name is to stand on one page of docs/build/api.py; on none: {missing}, "
            f"on several: {sorted(set(wrong) - set(missing))}, not public: {unknown}"
        )
    return {
        f"{FOLDER}/index.md": write_index(),
        **{f"{FOLDER}/{page.file}.md": write_page(page) for page in PAGES},
    }
