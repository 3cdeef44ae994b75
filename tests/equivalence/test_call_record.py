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

from mixer_equiv import Checkpoint, Policy, Report, load, verify
from mixer_equiv.equivalence.call_record import recorded
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
