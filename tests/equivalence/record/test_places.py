"""Places of operations: the innermost line of the user's code, and the innermost module of the model."""

from __future__ import annotations

import importlib.util
import linecache
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from torch import nn

from mixer_equiv.equivalence.record.places import Place, PlaceFinder

NOBODY = "nobody.py"  # a recorder that is not on the stack


class Probe(nn.Module):
    """Keeps the place of an operation in its forward method."""

    finder: PlaceFinder
    found: Place | None

    def forward(self, x: Any) -> Any:
        self.found = operation(self.finder)
        return x


def operation(finder: PlaceFinder) -> Place | None:
    return finder.current()  # the line of the operation


LINE = operation.__code__.co_firstlineno + 1


def found(*, with_modules: bool = True) -> Place | None:
    """The place of the operation of a probe, which is the module "1.0" of a model of torch's own containers."""
    probe = Probe()
    model = nn.Sequential(nn.Identity(), nn.Sequential(probe))
    modules = {id(module): name for name, module in model.named_modules()} if with_modules else {}
    probe.finder = PlaceFinder(modules, NOBODY)
    model(None)
    return probe.found


def test_line_is_the_users_innermost_and_module_is_the_models_innermost() -> None:
    here = Path(__file__).relative_to(Path.cwd()).as_posix()
    assert found() == Place(here, LINE, "return finder.current()  # the line of the operation", "1.0")
    assert str(found()) == f"{here}:{LINE} in 1.0"


def test_frames_from_the_recorder_upward_have_no_place() -> None:
    recorder = str(Path(PlaceFinder.current.__code__.co_filename).with_name("recorder.py"))
    names: dict[str, Any] = {}
    exec(compile("def run(finder): return finder.current()", recorder, "exec"), names)
    assert names["run"](PlaceFinder({}, recorder)) is None
    assert names["run"](PlaceFinder({}, NOBODY)) is not None


def test_without_modules_a_place_is_a_line_alone() -> None:
    assert str(found(with_modules=False)).endswith(f"test_places.py:{LINE}")


def test_without_code_of_the_user_a_place_is_a_module_alone() -> None:
    assert str(Place("", 0, "", "mlp.2")) == "mlp.2"


@pytest.mark.parametrize(
    ("code", "is_users"),
    [
        (nn.Linear.forward.__code__, False),
        (Path.exists.__code__, False),
        (PlaceFinder.current.__code__, False),
        (operation.__code__, True),
        (compile("x", "<string>", "exec"), False),
    ],
)
def test_code_of_frameworks_of_python_and_of_the_recorder_is_not_the_users(code: CodeType, is_users: bool) -> None:
    assert PlaceFinder({}, NOBODY).is_users(code.co_filename) is is_users


def test_installed_model_is_the_users_and_named_from_its_package() -> None:
    timm = importlib.util.find_spec("timm")
    assert timm is not None
    file = f"{(timm.submodule_search_locations or [''])[0]}/models/mlp_mixer.py"
    finder = PlaceFinder({}, NOBODY)
    assert finder.is_users(file)
    assert finder.place(file, 1, "").where == "timm/models/mlp_mixer.py:1"


def test_paths_are_as_the_user_would_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models" / "mymixer.py"
    file.parent.mkdir()
    file.write_text("x = 1\n    y = x\n", encoding="utf-8")
    assert str(PlaceFinder({}, NOBODY).place(str(file), 2, "blocks.3")) == "mymixer.py:2 in blocks.3"
    monkeypatch.chdir(tmp_path)
    assert PlaceFinder({}, NOBODY).place(str(file), 2, "").where == "models/mymixer.py:2"
    monkeypatch.chdir(tmp_path / "models")
    place = PlaceFinder({}, NOBODY).place(str(file), 2, "blocks.3")
    assert (place.file, place.text) == ("mymixer.py", "y = x")


def test_code_of_a_notebook_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(linecache.cache, "<cell 3>", (6, None, ["x = 1\n"], "<cell 3>"))
    assert PlaceFinder({}, NOBODY).is_users("<cell 3>")
