"""What made a report: hashes of files, and paths and addresses without private parts."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import load, save
from mixer_equiv.checkpoints import provenance
from mixer_equiv.checkpoints.provenance import FileDigest, Provenance
from mixer_equiv.shown_paths import shown_path, without_private_parts
from mixer_equiv.versions import versions
from tests.support.command_line import params


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, inside of somebody's home."""
    home = tmp_path / "home" / "alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    return home / "work"


def sha256sum(folder: Path, *names: str) -> str:
    """What the program of this name prints."""
    return subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_hash_of_a_file_is_that_of_its_bytes(folder: Path) -> None:
    np.savez("a.npz", **params())
    digest = FileDigest.of(Path("a.npz"))
    assert f"{digest.sha256}  a.npz\n" == sha256sum(folder, "a.npz")
    assert (digest.path, digest.num_bytes) == ("a.npz", Path("a.npz").stat().st_size)
    with Path("a.npz").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert FileDigest.of(Path("a.npz")).sha256 != digest.sha256


def test_shards_have_one_hash_whichever_of_them_is_named(folder: Path) -> None:
    index = save(load(_saved(folder)), folder / "shards" / "m.safetensors", max_shard_size="20KB")
    names = sorted(path.name for path in index.parent.iterdir())
    assert len(names) > 2
    lines = sha256sum(index.parent, *names)
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert FileDigest.of(index).sha256 == FileDigest.of(index.parent).sha256 == expected
    parts = [name for name in names if name.endswith(".safetensors")]
    of_parts = hashlib.sha256(sha256sum(index.parent, *parts).encode()).hexdigest()
    assert {FileDigest.of(index.parent / name).sha256 for name in parts} == {of_parts}
    (index.parent / parts[0]).write_bytes(b"")
    assert FileDigest.of(index).sha256 != expected


def _saved(folder: Path) -> Path:
    (folder / "shards").mkdir()
    return save(params(), folder / "whole.npz")


def test_a_hash_that_is_not_computed_is_said_to_be_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.npz").write_bytes(b"1234")
    monkeypatch.setattr(provenance, "LARGEST_HASHED", 3)
    assert str(FileDigest.of(Path("a.npz"))) == "a.npz sha256 not computed (4 bytes)"
    assert FileDigest.of(Path("gone.npz")).sha256 is None


PATHS = {
    "a.npz": "a.npz",
    "deep/a.npz": "deep/a.npz",
    "../a.npz": "a.npz",
    "~/a.npz": "a.npz",
    "~": "~",
    "/home/bob/a.npz": "a.npz",
    "/usr/lib/python3/site-packages/timm/models/mlp_mixer.py": "timm/models/mlp_mixer.py",
}


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_relative_or_names_alone(folder: Path, path: str) -> None:
    assert shown_path(path) == PATHS[path]
    assert shown_path(folder / "deep" / "a.npz") == "deep/a.npz"


TEXTS = {
    "verify('/home/bob/a.npz', seed=3)": "verify('a.npz', seed=3)",
    '--kwargs \'{"weights": "~/b.pt", "depth": 2}\'': '--kwargs \'{"weights": "b.pt", "depth": 2}\'',
    "../bob/mixer.py:Mixer": "mixer.py:Mixer",
    "--weights=/home/bob": "--weights=bob",
    "https://bob:secret@host.org/a.npz?token=secret#part": "https://host.org/a.npz",
    "hf://org/model@main/a.npz": "hf://org/model@main/a.npz",
    "s3://key:secret@bucket/a.npz": "s3://bucket/a.npz",
    "https://host.org?signature=secret": "https://host.org",
    "file:///home/bob/a.npz": "file://a.npz",
    "flax:B/16 --ignore 'head/*' =backbone. 1/2 a / b": "flax:B/16 --ignore 'head/*' =backbone. 1/2 a / b",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_lose_folders_credentials_and_queries(folder: Path, text: str) -> None:
    assert without_private_parts(text) == TEXTS[text]
    assert "secret" not in without_private_parts(text)


def test_the_current_folder_and_the_home_leave_no_name(folder: Path) -> None:
    shown = without_private_parts(f"verify {folder}/mixer.py:Mixer {folder} {folder.parent} {folder.parent}/b.npz")
    assert shown == "verify mixer.py:Mixer . ~ b.npz"


def test_from_above_the_home_its_name_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parents[1])
    assert shown_path(folder / "a.npz") == "a.npz"
    assert shown_path(folder.parents[1] / "shared" / "a.npz") == "shared/a.npz"


def test_the_line_of_text_has_version_call_seed_date_and_files() -> None:
    digest = FileDigest("a.npz", 4, "0123456789abcdef" * 4)
    made = Provenance("mixer-equiv verify a.npz", 3, "2026-11-30", {"mixer_equiv": "0.1.0"}, (digest,))
    expected = "mixer_equiv 0.1.0: mixer-equiv verify a.npz, seed 3, 2026-11-30; a.npz sha256 0123456789ab..."
    assert str(made) == expected


def test_a_package_that_was_never_installed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clone = types.ModuleType("cloned")
    monkeypatch.setitem(sys.modules, "cloned", clone)
    monkeypatch.setattr("mixer_equiv.versions.FRAMEWORKS", ("cloned",))
    assert versions()["cloned"] == "unknown"


def test_versions_are_of_this_package_and_of_what_is_imported() -> None:
    import mixer_equiv

    assert versions()["mixer_equiv"] == mixer_equiv.__version__
    assert versions()["numpy"] == np.__version__
