"""What a report says of the call that made it."""

from __future__ import annotations

import datetime
import functools
import hashlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import linen, nnx

from mixer_equiv import Checkpoint, Policy, Report, load, verify
from mixer_equiv.equivalence.call_record import recorded
from mixer_equiv.equivalence.sides.code_files import code_files
from mixer_equiv.equivalence.sides.locate import object_at
from tests.support.command_line import params
from tests.support.sizes import IMAGE, SMALL
from tests.support.structures import PortMixer


@recorded
def compare(a: Any, b: Any = None, *, weights: Any = None, seed: int = 0, **options: Any) -> Report:
    """Stand in for `verify`, which would take its time."""
    return Report("equivalent", 1e-12)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


CALLS = {
    "compare('a.npz', 'flax:B/16', seed=3)": (("a.npz", "flax:B/16"), {"seed": 3}),
    "compare(PortMixer, image=(3, 12, 12))": ((PortMixer,), {"image": (3, 12, 12)}),
    "compare(Linear(...), kwargs={'depth': 2})": ((torch.nn.Linear(2, 2),), {"kwargs": {"depth": 2}}),
    "compare(ndarray(...), dict(...))": ((np.zeros(3), {f"array {i}": np.zeros(2) for i in range(20)}), {}),
    "compare(partial(...), policy=Policy(residual=1e-09))": (
        (functools.partial(PortMixer, SMALL),),
        {"policy": Policy(residual=1e-9)},
    ),
    "compare('missing.npz', config=MixerConfig(num_classes=7, num_blocks=2, patch_size=(2, 3), hidden_dim=20, "
    "tokens_mlp_dim=11, channels_mlp_dim=26, image_size=(8, 9)))": ((Path("/gone/missing.npz"),), {"config": SMALL}),
    "compare('flax')": (("flax",), {"on_step": print}),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_call_is_written_as_code_with_models_by_their_types(call: str) -> None:
    args, kwargs = CALLS[call]
    assert compare(*args, **kwargs).provenance.call == call


def test_files_and_sources_are_hashed_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **params())
    Path("theirs.py").write_text(textwrap.dedent("class Mixer: pass"))
    made = compare("a.npz", "theirs.py:Mixer", weights=load("a.npz")).provenance
    assert [(file.path, file.sha256) for file in made.files] == [("a.npz", sha256(Path("a.npz")))]
    assert [(file.path, file.sha256) for file in made.sources] == [("theirs.py", sha256(Path("theirs.py")))]
    assert datetime.date.fromisoformat(made.date) <= datetime.datetime.now(datetime.UTC).date()


SOURCES = {
    "a model": PortMixer(SMALL),
    "a class": PortMixer,
    "a partial": functools.partial(PortMixer, SMALL),
    "a place": "tests.support.structures:PortMixer",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_source_of_a_model_is_the_file_of_its_class(kind: str) -> None:
    path = Path(inspect.getsourcefile(PortMixer))
    assert [(file.path, file.sha256) for file in compare(SOURCES[kind]).provenance.sources] == [
        (path.relative_to(Path.cwd()).as_posix(), sha256(path))
    ]


def test_the_code_of_base_classes_and_of_modules_within_is_hashed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = "from tests.support.sizes import SMALL\nfrom tests.support.structures import PortMixer\n"
    Path("parts_below.py").write_text(
        f"from torch import nn\n{size}class Pool(nn.Identity): pass\nclass Base(PortMixer):\n    pass\n"
    )
    Path("parts_inside.py").write_text("from torch import nn\nclass Norm(nn.LayerNorm): pass\n")
    Path("mine.py").write_text(
        f"{size}from parts_below import Base\nfrom parts_inside import Norm\nclass Mixer(Base):\n"
        "    def __init__(self):\n        super().__init__(SMALL)\n        self.final_norm = Norm(20, eps=1e-6)\n"
    )
    Path("builder.py").write_text("import mine\ndef build(): return mine.Mixer()\n")
    model = verify("mine.py:Mixer", image=IMAGE, gradients=False, fail_fast=True)
    ports = Path(inspect.getsourcefile(PortMixer)).name
    expected = ["mine.py", "parts_below.py", ports, "parts_inside.py"]
    assert [file.path for file in model.provenance.sources] == expected
    assert [file.sha256 for file in model.provenance.sources[:2]] == [sha256(Path(name)) for name in expected[:2]]
    built = verify("builder.py:build", image=IMAGE, gradients=False, fail_fast=True)
    assert [file.path for file in built.provenance.sources] == ["builder.py", *expected]


def test_modules_of_flax_show_their_classes_too(tmp_path: Path) -> None:
    for name, library in (("part_of_nnx", "nnx"), ("part_of_linen", "linen")):
        (tmp_path / f"{name}.py").write_text(f"from flax import {library}\nclass Part({library}.Module): pass\n")
    nnx_part, linen_part = (object_at(f"{tmp_path}/{name}.py:Part")() for name in ("part_of_nnx", "part_of_linen"))

    class Linen(linen.Module):
        parts: tuple[linen.Module, ...]

    class Nnx(nnx.Module):
        def __init__(self) -> None:
            self.part = nnx_part

    assert code_files(Nnx()) == [Path(__file__), tmp_path / "part_of_nnx.py"]
    assert code_files(Linen((linen.Dense(2), linen_part))) == [Path(__file__), tmp_path / "part_of_linen.py"]
    assert code_files(torch.nn.Linear(2, 2)) == code_files(linen.Dense(2)) == code_files("flax") == []


def test_a_model_of_timm_is_made_by_code_of_timm() -> None:
    assert [file.path for file in compare("timm:mixer_b16_224.goog_in21k").provenance.sources] == [
        "timm/models/mlp_mixer.py"
    ]


def test_words_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "random", "arrays"):
        Path(name).mkdir()
    for given in ("torch", "missing.npz", Checkpoint.from_arrays(params())):
        made = compare(given, "flax", weights="random").provenance
        assert (made.files, made.sources) == ((), ())


def test_nothing_of_the_home_is_in_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    np.savez(home / "work" / "a.npz", **params())
    monkeypatch.chdir(home / "work")
    report = verify(str(home / "work" / "a.npz"), "reference", gradients=False)
    assert report.to_dict()["provenance"]["files"][0]["path"] == "a.npz"
    assert "alice" not in report.to_json()
    assert str(report).split("made by")[1].split()[:2] == [
        "mixer_equiv",
        report.provenance.versions["mixer_equiv"] + ":",
    ]


def test_verify_keeps_its_signature_and_says_what_made_its_reports() -> None:
    assert list(inspect.signature(verify).parameters)[:3] == ["a", "b", "weights"]
    report = verify(PortMixer(SMALL), "reference", image=IMAGE, seed=3, gradients=False)
    assert report.provenance.call == "verify(PortMixer(...), 'reference', image=(3, 8, 9), gradients=False, seed=3)"
    assert (report.provenance.seed, report.names) == (3, ("PortMixer", "reference"))
