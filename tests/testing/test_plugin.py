"""The pytest plugin in a project of somebody else's."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from mixer_equiv.testing.origin import own_folders
from mixer_equiv_pytest import TITLE, UNFINISHED
from tests.support.oblong import CONFIG

HEADLINE = r"NOT EQUIVALENT, explained \(equivalent_under\): fp64 residual \S+"
# A project of its own

PYPROJECT = """
[project]
name = "theirs"
version = "1"

[tool.pytest.ini_options]
addopts = "--strict-markers --strict-config"
filterwarnings = ["error"]
pythonpath = ["src"]
"""
MIXER = """
from torch import nn


class Block(nn.Module):
    def __init__(self, tokens, dim, across, along, eps, gelu):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps) for _ in range(2))
        self.across = nn.Sequential(nn.Linear(tokens, across), gelu, nn.Linear(across, tokens))
        self.along = nn.Sequential(nn.Linear(dim, along), gelu, nn.Linear(along, dim))

    def forward(self, x):
        x = x + self.across(self.norms[0](x).mT).mT
        return x + self.along(self.norms[1](x))


class TheirMixer(nn.Module):
    def __init__(self, tokens, channels, patch, dim, across, along, depth, classes, eps=1e-6, approximate="tanh",
                 scrambled=False):
        super().__init__()
        self.scrambled = scrambled
        gelu = nn.GELU(approximate)
        self.cut = nn.Conv2d(channels, dim, patch, patch)
        self.blocks = nn.Sequential(*(Block(tokens, dim, across, along, eps, gelu) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps)
        self.answer = nn.Linear(dim, classes) if classes else nn.Identity()

    def forward(self, images):
        patches = self.cut(images)
        tokens = patches.flatten(2).mT
        if self.scrambled:
            tokens = patches.reshape(tokens.shape)
        return self.answer(self.norm(self.blocks(tokens)).mean(1))


def mixer(c, **kwargs):
    return TheirMixer(c.num_tokens, c.in_channels, c.patch_hw, c.hidden_dim, c.tokens_mlp_dim, c.channels_mlp_dim,
                      c.num_blocks, c.num_classes, **kwargs)
"""
RIGHT = f"""
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from mixer_equiv import MixerConfig
from mixer_equiv.testing.strategies import configs
from theirs.mixer import TheirMixer, mixer

CONFIG = {CONFIG!r}
OFFICIAL_FIELDS = {{"activation": "gelu_tanh", "layer_norm_eps": 1e-6}}


@settings(max_examples=3, derandomize=True, database=None, deadline=None)
@given(configs(max_blocks=2, min_dim=3, **OFFICIAL_FIELDS))
def test_for_drawn_configs(assert_equivalent, config):
    assert_equivalent(mixer, "reference", config=config, gradients=False)


def test_with_gradients(assert_equivalent):
    report = assert_equivalent(TheirMixer(6, 2, (2, 3), 7, 4, 8, 1, 5), image=(2, 4, 9))
    assert report.gradients.residual < 1e-12


def test_by_its_place(assert_equivalent):
    assert_equivalent("src/theirs/mixer.py:mixer", "reference", config=CONFIG, gradients=False)


@pytest.mark.mixer_equiv(under=["layer_norm_eps"], gradients=False)
class TestPort:
    @pytest.mark.mixer_equiv(seed=3)
    def test_under(self, assert_equivalent):
        report = assert_equivalent(mixer, "reference", config=CONFIG, kwargs={{"eps": 1e-5}})
        assert report.verdict == "equivalent_under"
        assert report.gradients is None

    @pytest.fixture
    def made_before(self, assert_equivalent):
        return assert_equivalent(mixer, "reference", config=CONFIG, kwargs={{"eps": 1e-5}})

    def test_in_a_fixture(self, made_before):
        assert made_before.gradients is None

    def test_in_a_thread(self, assert_equivalent):
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(assert_equivalent, mixer, "reference", config=CONFIG, kwargs={{"eps": 1e-5}})
        assert asked.result().gradients is None

    @pytest.mark.mixer_equiv(under=None)
    def test_undone(self, assert_equivalent):
        with pytest.raises(AssertionError, match="^not equivalent\\n"):
            assert_equivalent(mixer, "reference", config=CONFIG, kwargs={{"eps": 1e-5}})
"""
CONFTEST = """
def in_conftest(config):
    from theirs.mixer import mixer

    return mixer(config, eps=1e-5)
"""
WRONG = f"""
import functools

import pytest
from conftest import in_conftest
from hypothesis import Phase, given, settings
from mixer_equiv import MixerConfig
from mixer_equiv.testing.strategies import configs
from theirs.mixer import TheirMixer, mixer

CONFIG = {CONFIG!r}
ALL_BUT_HIDDEN = {{name: size for name, size in CONFIG.to_dict().items() if name != "hidden_dim"}}
PHASES = Phase.generate, Phase.shrink
pytestmark = pytest.mark.mixer_equiv(gradients=False)


@settings(max_examples=2, derandomize=True, database=None, deadline=None, phases=PHASES)
@given(configs(min_dim=5, max_dim=6, **ALL_BUT_HIDDEN))
def test_erf(assert_equivalent, config):
    assert_equivalent(lambda c: mixer(c, approximate="none"), "reference", config=config)


@pytest.mark.mixer_equiv(seed=3)
def test_eps(assert_equivalent):
    eps = 1e-5
    assert_equivalent(TheirMixer(6, 2, (2, 3), 7, 4, 8, 1, 5, eps), "reference", image=(2, 4, 9))


class InThisFile(TheirMixer):
    pass


def test_class(assert_equivalent):
    assert_equivalent(InThisFile(6, 2, (2, 3), 7, 4, 8, 1, 5, 1e-5), "reference", image=(2, 4, 9))


def test_conftest(assert_equivalent):
    assert_equivalent(in_conftest, "reference", config=CONFIG)


PARTIAL = functools.partial(mixer, eps=1e-5)


@pytest.mark.mixer_equiv(config=CONFIG)
def test_partial(assert_equivalent):
    assert_equivalent(PARTIAL, "reference")


@pytest.fixture
def model():
    return TheirMixer(6, 2, (2, 3), 7, 4, 8, 1, 5, 1e-5)


def test_fixture(assert_equivalent, model):
    assert_equivalent(model, "reference", image=(2, 4, 9))


def test_order(assert_equivalent):
    assert_equivalent(mixer, "reference", config=CONFIG, kwargs={{"scrambled": True}})


@pytest.mark.mixer_equiv(3)
def test_marker(assert_equivalent):
    assert_equivalent(mixer, "reference", config=CONFIG)


@pytest.mark.mixer_equiv(sed=3)
def test_unknown(assert_equivalent):
    assert_equivalent(mixer, "reference", config=CONFIG)
"""
IMPORTED = f"""
from mixer_equiv import MixerConfig, assert_equivalent
from theirs.mixer import mixer

CONFIG = {CONFIG!r}


def test_imported():
    assert_equivalent(mixer, "reference", config=CONFIG, kwargs={{"eps": 1e-5}}, gradients=False)
"""
NOTHING = """
import sys

import pytest

HEAVY = {"mixer_equiv", "numpy", "torch", "jax", "flax", "rich", "typer"}


def test_nothing_is_loaded(request):
    assert request.config.pluginmanager.has_plugin("mixer_equiv")
    assert not HEAVY & set(sys.modules)


def test_until_it_is_used(assert_equivalent):
    assert HEAVY & set(sys.modules) == {"mixer_equiv", "numpy"}


class TestOwn:
    @pytest.fixture
    def assert_equivalent(self):
        return "their own"

    def test_a_fixture_of_their_own_stays(self, assert_equivalent):
        assert assert_equivalent == "their own"
"""
FILES = {
    "pyproject.toml": PYPROJECT,
    "src/theirs/__init__.py": "",
    "src/theirs/mixer.py": MIXER,
    "tests/conftest.py": CONFTEST,
    "tests/test_right.py": RIGHT,
    "tests/test_wrong.py": WRONG,
    "tests/test_imported.py": IMPORTED,
    "tests/test_nothing.py": NOTHING,
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "project"


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ours = ("PYTEST_", "HYPOTHESIS_", "CI")  # what concerns the tests that are running
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def outcome(project: Path, *arguments: str) -> tuple[str, list[str]]:
    """What pytest prints, and the tests that failed, or whose setup did."""
    run = python(project, "-m", "pytest", *arguments)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return run.stdout, re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", run.stdout, re.MULTILINE)


def snippets(output: str, title: str = TITLE) -> list[str]:
    """The code below each failure, each piece to its end."""
    return re.findall(rf"^-+ {title} -+\n(.*?^print\(report\)\n)", output, re.DOTALL | re.MULTILINE)


def test_the_plugin_is_installed() -> None:
    plugins = {entry.name: entry.value for entry in importlib.metadata.entry_points(group="pytest11")}
    assert plugins.get("mixer_equiv") == "mixer_equiv_pytest", "install anew: pip install -e '.[all]'"


def test_a_right_mixer_passes(project: Path) -> None:
    output, failed = outcome(project, "tests/test_right.py")
    assert (failed, "7 passed" in output) == ([], True), output


def test_a_wrong_mixer_fails_with_code_that_shows_it_by_itself(project: Path) -> None:
    output, failed = outcome(project, "tests/test_wrong.py", "--mixer-equiv-seed", "7")
    tests = "erf", "eps", "class", "conftest", "partial", "fixture", "order", "marker", "unknown"
    assert failed == [f"test_{name}" for name in tests], output
    assert "the marker mixer_equiv takes options by name, and was given (3,)" in output
    assert "the marker mixer_equiv was given sed; it takes under, weights, config, kwargs, " in output
    erf, eps, made, conftest, partial, order = snippets(output)  # of Hypothesis's examples the last alone
    (unfinished,) = snippets(output, UNFINISHED)
    assert "mine = ...  # to be filled in: model, a TheirMixer that only the test has" in unfinished
    assert "hidden_dim=5,\n" in erf
    assert "num_blocks=1,\n" in erf
    assert "mine = lambda c: mixer(c, approximate='none')" in erf
    assert re.search(
        r"^report = verify\(mine, 'reference', seed=7, gradients=False, config=config\)", erf, re.MULTILINE
    )
    assert "eps = 1e-05" in eps
    assert "seed=3" in eps
    assert "kwargs={'scrambled': True}" in order
    assert "/assertions.py" not in output
    for test, code in (("erf", erf), ("eps", eps), ("class", made), ("conftest", conftest), ("partial", partial)):
        shown = re.search(HEADLINE, output[output.index(f"_ test_{test} _") :])
        (project.parent / "snippet.py").write_text(code)
        run = python(project.parent, "snippet.py")
        assert shown
        assert shown[0] in run.stdout, run.stdout + run.stderr


def test_folders_are_those_on_the_path_where_nothing_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("src", "real/site-packages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    before = own_folders()
    installed = sysconfig.get_path("scripts"), sysconfig.get_path("stdlib"), os.path.dirname(pytest.__path__[0])
    for entry in ("src", "missing", "link/site-packages", "link", ".", "src", *installed):
        monkeypatch.syspath_prepend(tmp_path / entry)
    assert own_folders() == [str(tmp_path / "src"), str(tmp_path), str(tmp_path / "link"), *before]


@pytest.mark.parametrize("arguments", [("-n1",), ("-p", "no:mixer_equiv")], ids=" ".join)
def test_the_snippet_is_shown_with_other_plugins_and_without_ours(project: Path, arguments: tuple[str, ...]) -> None:
    output, failed = outcome(project, "tests/test_imported.py", *arguments)
    assert failed == ["test_imported"], output
    code = "report = verify("
    assert output.count(code) == 1
    if "no:mixer_equiv" in arguments:
        assert re.search(rf"^E +{re.escape(code)}", output, re.MULTILINE)
        assert TITLE not in output
    else:
        assert len(snippets(output)) == 1


def test_nothing_is_imported_until_it_is_used(project: Path) -> None:
    output, failed = outcome(project, "tests/test_nothing.py")
    assert (failed, "3 passed" in output) == ([], True), output


def test_pytest_tells_what_there_is(project: Path) -> None:
    assert (
        "@pytest.mark.mixer_equiv(**options): defaults for the options of assert_equivalent"
        in outcome(project, "--markers")[0]
    )
    fixtures = outcome(project, "--fixtures", "tests/test_nothing.py")[0]
    assert re.search(r"^assert_equivalent \[session scope\].*\n +Fail unless a Mixer is", fixtures, re.MULTILINE)
