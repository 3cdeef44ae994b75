"""The pytest plugin in Markdown: its option and its marker, as the plugin itself declares them."""

from __future__ import annotations

from typing import Any

import mixer_equiv_pytest
from docs.build.markdown import code, plain, table


class _Recorder:
    """Stands in for pytest's parser of options, and records them."""

    def __init__(self) -> None:
        self.options: list[tuple[str, str]] = []

    def getgroup(self, _: str) -> _Recorder:
        return self

    def addoption(self, name: str, *, metavar: str, help: str, **_: Any) -> None:
        self.options.append((f"{name} {metavar}", help))


def describe() -> str:
    """A paragraph, and a table of the option and the marker."""
    recorder: Any = _Recorder()
    mixer_equiv_pytest.pytest_addoption(recorder)
    marker, _, purpose = mixer_equiv_pytest.MARKER.partition(": ")
    rows = [*recorder.options, (f"@pytest.mark.{marker}", purpose)]
    return (
        "The pytest plugin is installed with the package and needs no import. It has the fixture `assert_equivalent`, "
        "described [below][mixer_equiv_pytest.assert_equivalent], and:\n\n"
        + table(("option or marker", "meaning"), [(code(name), plain(meaning)) for name, meaning in rows])
    )
