"""The code of a page is run as a program: in order, in a folder of its own, and stopped where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

from mkdocs.exceptions import BuildError

from docs.build.execution import Pages, run_command
from mixer_equiv import LAYOUTS


def page(*blocks: str) -> str:
    return "# A page\n\n" + "\n".join(f"```{block}\n```\n" for block in blocks)


def run(*blocks: str, meta: dict[str, Any] | None = None) -> str:
    return Pages().run("how-to/page.md", page(*blocks), meta or {})


def test_what_a_block_prints_stands_below_it() -> None:
    shown = run("python\nx = 2", "python\nprint(x + 1)")
    assert shown.endswith("```python\nprint(x + 1)\n```\n\n```{ .text .output }\n3\n```\n")
    assert shown.count("```") == 6


def test_a_block_that_fails_is_named_with_its_line() -> None:
    with pytest.raises(BuildError, match=r"docs/how-to/page\.md:8: .*\n.*line 9: AssertionError: three"):
        run("python\nx = 2", "python\nx += 1\nassert x == 2, 'three'")


def test_a_page_goes_on_with_the_names_of_another_and_leaves_these_as_they_are() -> None:
    pages = Pages()
    pages.run("a/first.md", page("python\nx = [1]"), {})
    assert "\n[1]\n" in pages.run("a/second.md", page("python\nprint(x)\nx = 0"), {"continues": "first.md"})
    assert pages.names["a/first.md"]["x"] == [1]
    with pytest.raises(BuildError, match="was not run before it"):
        pages.run("a/third.md", page(), {"continues": "none.md"})


def test_a_class_of_a_page_finds_its_module_and_is_in_no_file() -> None:
    shown = run(
        "python\nfrom __future__ import annotations\nimport inspect, sys, typing\nfrom flax import linen as nn",
        "python\nclass Layer(nn.Module):\n    size: Size = 3\n\nSize = int",
        "python\nprint(typing.get_type_hints(Layer)['size'], sys.modules[Layer.__module__].Size)",
        "python\ntry:\n    inspect.getsourcefile(Layer)\nexcept (TypeError, OSError):\n    print('no file')",
    )
    assert "<class 'int'> <class 'int'>" in shown
    assert "\nno file\n" in shown


def test_files_are_in_a_folder_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run(
        'python title="folder/mine.py"\nraise AssertionError',
        'python title="my_constant.py"\nVALUE = 5',
        "python\nfrom pathlib import Path\nfrom my_constant import VALUE\nprint(VALUE, *sorted(Path().iterdir()))",
        meta={"given": ["Mixer-B_16.npz"]},
    )
    assert "\n5 Mixer-B_16.npz " in shown
    assert "folder my_constant.py" in shown
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BuildError, match="my_constant"):
        run("python\nimport my_constant")


def test_what_a_page_registers_is_gone_afterwards() -> None:
    before = dict(LAYOUTS)
    run("python\nfrom mixer_equiv import LAYOUTS\nLAYOUTS['mine'] = LAYOUTS['timm']")
    assert before == LAYOUTS


def test_commands_are_run_and_others_are_only_shown() -> None:
    shown = run("console\n$ mixer-equiv --version\n$ pip install nothing-of-the-kind\n$ python -c 'print(6 * 7)'")
    assert "mixer_equiv" in shown or "mixer-equiv" in shown
    assert "\n42\n" in shown


def test_a_command_must_end_with_the_status_that_is_said() -> None:
    assert "nowhere.npz" in run_command("mixer-equiv inspect nowhere.npz  # exit status 2")
    with pytest.raises(RuntimeError, match="exit status 2"):
        run_command("mixer-equiv inspect nowhere.npz")
    with pytest.raises(RuntimeError, match="exit status 0"):
        run_command("mixer-equiv --version  # exit status 1")
