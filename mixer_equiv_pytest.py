"""The pytest plugin of mixer_equiv: the fixture `assert_equivalent`, the marker `mixer_equiv`, and snippets.

It lies beside the package because pytest loads it at the start of every run, and most runs need nothing of the
package. Importing a module of the package would import NumPy, which reads the number of its threads from the
environment before a conftest.py can set it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

TITLE = "mixer_equiv: the failing example, as code that runs by itself"
UNFINISHED = "mixer_equiv: the failing example, as code that runs after its gaps are filled in"

MARKER = (
    "mixer_equiv(**options): defaults for the options of assert_equivalent in this test: seed=3, "
    "under=['activation'], gradients=False, train_steps=5, policy=Policy(residual=1e-10), and the other options "
    "of mixer_equiv.verify."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mixer_equiv").addoption(
        "--mixer-equiv-seed",
        type=int,
        metavar="N",
        help="seed of the random weights and images of assert_equivalent, where a test or its marker gives none "
        "(default: 0)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(scope="session")
def assert_equivalent() -> Callable[..., Any]:
    """Fail unless a Mixer is the official function: `assert_equivalent(MyMixer, config=config)`.

    This is `mixer_equiv.assert_equivalent`. Its first argument is a class, a function that makes a model, a model, a
    checkpoint, or the place of one of these ("path/to/file.py:MyMixer"); the second is the model to compare it with, by
    default "reference" for a torch model of yours and "flax" for one of Flax; then come the options of
    `mixer_equiv.verify`. Classes and functions are called with `config`; a model needs `image=(channels, height,
    width)`. The fixture's scope is the session, so that Hypothesis tests can use it.
    """
    from mixer_equiv import assert_equivalent

    return assert_equivalent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Set up fixtures with the options of the test that first asks for them."""
    return (yield from _with_options(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _with_options(item))


def _with_options(item: pytest.Item) -> Generator[None, Any, Any]:
    options = _options(item)
    if not options:
        return (yield)
    from mixer_equiv.testing.assertions import OPTIONS, defaults

    unknown = ", ".join(name for name in options if name not in OPTIONS)
    if unknown:
        pytest.fail(f"the marker mixer_equiv was given {unknown}; it takes {', '.join(OPTIONS)}", pytrace=False)
    with defaults(**options):
        return (yield)


def _options(item: pytest.Item) -> dict[str, Any]:
    """Options of the command line and of the markers; the nearest marker wins."""
    seed = item.config.getoption("--mixer-equiv-seed")
    options = {} if seed is None else {"seed": seed}
    for marker in reversed(list(item.iter_markers("mixer_equiv"))):
        if marker.args:
            pytest.fail(f"the marker mixer_equiv takes options by name, and was given {marker.args}", pytrace=False)
        options.update(marker.kwargs)
    return options


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """Move snippets from the traceback to a section below it, where they can be copied."""
    snippets = list(_take_snippets(call.excinfo.value)) if call.excinfo is not None else []
    report = yield
    if not snippets:
        return report
    from mixer_equiv.testing.reproducer import FILL_IN

    text = "\n\n".join(snippets)
    title = UNFINISHED if f"# {FILL_IN}" in text else TITLE
    if hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection(title, text, sep="-")
    else:
        report.sections.append((title, text))
    return report


def _take_snippets(error: BaseException) -> Iterator[str]:
    """Remove the snippets from the notes of an error, or of the errors in a group, and yield them."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _take_snippets(member)
        return
    errors = sys.modules.get("mixer_equiv.errors")
    if errors is not None and isinstance(error, errors.NotEquivalentError) and error.snippet:
        error.__notes__ = [note for note in getattr(error, "__notes__", []) if note != error.snippet]
        yield error.snippet
