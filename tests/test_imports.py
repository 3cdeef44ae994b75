"""What may import what, what works without the frameworks, and that JAX's precision is left as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixer_equiv import MissingDependencyError
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.drawn_weights import random_params
from tests.matrix.__main__ import BASE
from tests.support.scripts import BLOCKED, printed, python

FRAMEWORKS = frozenset({"torch", "jax", "jaxlib", "flax"})


# What an import loads

LOADED = "import json, sys, {}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


def test_importing_the_package_loads_no_framework() -> None:
    loaded = set(printed(LOADED.format("mixer_equiv")))
    assert {"mixer_equiv", "numpy", "einops"} <= loaded
    assert not loaded & (FRAMEWORKS | {"hypothesis", "typer", "timm"})


def test_importing_the_command_line_loads_no_framework() -> None:
    loaded = set(printed(LOADED.format("mixer_equiv.cli")))
    assert "typer" in loaded
    assert not loaded & (FRAMEWORKS | {"hypothesis", "timm"})


# Without the frameworks

COMMANDS = (
    BLOCKED
    + """
from typer.testing import CliRunner
from mixer_equiv.cli import app

results = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"results": [[r.exit_code, r.stdout, r.stderr] for r in results], "loaded": loaded}))
"""
)

CONVERT = (
    BLOCKED
    + """
import numpy as np
from mixer_equiv import MissingDependencyError, convert
from mixer_equiv.arrays.interop import flatten

with np.load(sys.argv[1]) as arrays:
    params = dict(arrays)
state = convert(params, to="torch")
back = dict(flatten(convert(state.arrays, to="linen")))
try:
    state["head.bias"]
except MissingDependencyError as error:
    message = str(error)
same = {name: bool(np.array_equal(back[name], params[name])) for name in params}
print(json.dumps({"same": same, "kinds": sorted({type(a).__name__ for a in back.values()}), "message": message}))
"""
)


TESTS = BLOCKED + "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"


@pytest.mark.parametrize(
    "arguments", [("--collect-only", *BASE), ("tests/checkpoints/test_relabel.py",)], ids=["imported", "run"]
)
def test_what_the_matrix_runs_on_a_base_installation_needs_no_framework(arguments: tuple[str, ...]) -> None:
    finished = python(TESTS, *arguments)
    assert finished.returncode == 0, finished.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "published.npz"
    np.savez(path, **random_params(DEFAULT_CONFIG, 0))
    return path


@pytest.fixture(scope="module")
def without_frameworks(published: Path) -> dict[str, tuple[int, str, str]]:
    """Exit status, stdout and stderr of some command lines, in one process without torch, JAX and Flax."""
    folder = published.parent
    commands = {
        "to safetensors": ["convert", published, folder / "there.safetensors", "--to", "timm"],
        "to npz": ["convert", folder / "there.safetensors", folder / "back.npz"],
        "inspect npz": ["inspect", published],
        "inspect safetensors": ["inspect", folder / "there.safetensors"],
        "to pt": ["convert", published, folder / "there.pt"],
        "verify": ["verify", published],
    }
    arguments = json.dumps([list(map(str, command)) for command in commands.values()])
    outcome = printed(COMMANDS, arguments)
    assert not FRAMEWORKS & set(outcome["loaded"])
    return dict(zip(commands, map(tuple, outcome["results"]), strict=True))


@pytest.mark.parametrize("command", ["to safetensors", "to npz", "inspect npz", "inspect safetensors"])
def test_converting_and_inspecting_need_no_framework(
    without_frameworks: dict[str, tuple[int, str, str]], command: str
) -> None:
    status, shown, errors = without_frameworks[command]
    assert (status, errors) == (0, "")
    assert "18,003" in shown


@pytest.mark.usefixtures("without_frameworks")
def test_a_round_trip_without_frameworks_is_bit_exact(published: Path) -> None:
    with np.load(published) as before, np.load(published.parent / "back.npz") as after:
        assert sorted(before.files) == sorted(after.files)
        assert [name for name in before.files if before[name].tobytes() != after[name].tobytes()] == []


@pytest.mark.parametrize(("command", "extra"), [("to pt", "torch"), ("verify", "flax")])
def test_what_needs_a_framework_names_the_extra(
    without_frameworks: dict[str, tuple[int, str, str]], published: Path, command: str, extra: str
) -> None:
    status, shown, errors = without_frameworks[command]
    assert (status, shown) == (2, "")
    assert errors.startswith("error: ")
    assert f"pip install 'mixer_equiv[{extra}]'" in errors
    assert not (published.parent / "there.pt").exists()


def test_arrays_are_converted_without_frameworks(published: Path) -> None:
    outcome = printed(CONVERT, published)
    assert len(outcome["same"]) == 150
    assert all(outcome["same"].values())
    assert outcome["kinds"] == ["ndarray"]
    assert "a torch tensor needs torch" in outcome["message"]
    assert "pip install 'mixer_equiv[torch]'" in outcome["message"]


@pytest.mark.parametrize("name", sorted(FRAMEWORKS))
def test_the_block_does_block(name: str) -> None:
    finished = python(f"{BLOCKED}\nimport {name}")
    assert finished.returncode == 1
    assert f"ImportError: {name} is blocked" in finished.stderr


def test_a_missing_dependency_is_an_import_error() -> None:
    assert issubclass(MissingDependencyError, ImportError)


# Somebody else's torch model, where torch is all there is

WITH_TORCH_ALONE = (
    BLOCKED.replace('"torch", ', "")
    + """
from mixer_equiv import verify

sizes = {"image_size": 12, "patch_size": 4, "hidden": 20, "depth": 2}
report = verify(sys.argv[1], kwargs=sizes, image=(3, 12, 12), train_steps=2)
print(json.dumps({
    "verdict": report.verdict,
    "programs": [side.program for side in report.sides],
    "gradients": report.gradients.residual,
    "training": [trained.residual / trained.threshold for trained in report.training],
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""
)


def test_a_torch_model_is_verified_with_gradients_and_training_by_torch_alone() -> None:
    model = Path(__file__).parents[1] / "examples" / "their_mixer.py"
    outcome = printed(WITH_TORCH_ALONE, f"{model}:MLPMixer")
    assert outcome["verdict"] == "equivalent_under"
    assert outcome["programs"] == ["PyTorch", "NumPy"]
    assert outcome["gradients"] <= 1e-12
    assert len(outcome["training"]) == 2
    assert max(outcome["training"]) <= 1
    assert not {"jax", "flax", "optax", "scipy"} & set(outcome["loaded"])


# JAX's own precision

WITHOUT_X64 = """
import json, sys
import jax, numpy as np, torch
from mixer_equiv import convert, verify
from mixer_equiv.arrays.interop import flatten

with np.load(sys.argv[1]) as arrays:
    params = dict(arrays)
state = {name: torch.from_numpy(array) for name, array in convert(params, to="torch").arrays.items()}
back = dict(flatten(convert(state, to="linen")))
report = verify(state)
print(json.dumps({
    "same": all(type(a) is np.ndarray and a.tobytes() == params[n].tobytes() for n, a in back.items()),
    "dtypes": sorted({str(array.dtype) for array in back.values()}),
    "verdict": report.verdict,
    "residual": report.residual,
    "programs": [side.program for side in report.sides],
    "x64": bool(jax.config.jax_enable_x64),
    "dtype_after": str(jax.numpy.asarray(np.ones(3)).dtype),
}))
"""


def test_float64_survives_where_jax_has_x64_off(published: Path) -> None:
    outcome = printed(WITHOUT_X64, published, JAX_ENABLE_X64="0")
    assert (outcome["same"], outcome["dtypes"]) == (True, ["float64"])
    assert sorted(outcome["programs"]) == ["Flax", "PyTorch"]
    assert outcome["verdict"] == "equivalent"
    assert 0 < outcome["residual"] < 1e-12
    assert (outcome["x64"], outcome["dtype_after"]) == (False, "float32")


# torch's compiler, which takes a second to import

COMPILING = """
import json, sys, torch
from mixer_equiv import verify
from mixer_equiv.equivalence.sides.base import DEFAULT_CONFIG
from tests.support.structures.ports import PortMixer

SMALL = DEFAULT_CONFIG.replace(num_blocks=2)
IMAGE = (SMALL.in_channels, *SMALL.image_hw)

class Compiling(PortMixer):
    def forward(self, images):
        self.fast = torch.compile(super().forward)
        return self.fast(images)

compiler = "torch._dynamo"
plain = verify(PortMixer(SMALL), image=IMAGE, gradients=False)
before = compiler in sys.modules
compiling = verify(Compiling(SMALL), image=IMAGE)
import torch._dynamo.utils
print(json.dumps({
    "verdicts": [plain.verdict, compiling.verdict],
    "imported": [before, compiler in sys.modules],
    "compiled": sum(torch._dynamo.utils.counters["frames"].values()),
    "finders": sum("mixer_equiv" in str(type(finder).__module__) for finder in sys.meta_path),
}))
"""


def test_torchs_compiler_is_not_imported_but_by_models_that_compile_themselves_and_then_compiles_nothing() -> None:
    assert printed(COMPILING) == {
        "verdicts": ["equivalent", "equivalent"],
        "imported": [False, True],
        "compiled": 0,
        "finders": 0,
    }


# What may import what

ROOT = Path(__file__).parent.parent

# Modules that need torch or JAX as soon as they are imported; all others import these where they use them.
OF_A_FRAMEWORK = (
    "mixer_equiv.bench.jax_calls",
    "mixer_equiv.bench.peers_flax",
    "mixer_equiv.bench.peers_torch",
    "mixer_equiv.bench.torch_calls",
    "mixer_equiv.equivalence.correspondence.changes",
    "mixer_equiv.equivalence.correspondence.flow",
    "mixer_equiv.equivalence.correspondence.forward",
    "mixer_equiv.equivalence.correspondence.hits",
    "mixer_equiv.equivalence.correspondence.offers",
    "mixer_equiv.equivalence.correspondence.search",
    "mixer_equiv.equivalence.correspondence.table",
    "mixer_equiv.equivalence.correspondence.targets",
    "mixer_equiv.equivalence.faults.planted_behaviour",
    "mixer_equiv.equivalence.faults.planted_code",
    "mixer_equiv.equivalence.record.jax",
    "mixer_equiv.equivalence.record.jax_graph",
    "mixer_equiv.equivalence.record.module_scopes",
    "mixer_equiv.equivalence.record.torch",
    "mixer_equiv.equivalence.two_models",
    "mixer_equiv.models.flax",
    "mixer_equiv.models.nnx",
    "mixer_equiv.models.torch",
)

EVERY_MODULE = (
    BLOCKED
    + """
import importlib, pkgutil
import mixer_equiv

failed = []
for module in pkgutil.walk_packages(mixer_equiv.__path__, "mixer_equiv.", onerror=lambda name: None):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ImportError:
        failed.append(module.name)
print(json.dumps(failed))
"""
)


def test_modules_need_no_framework_when_imported_but_those_that_are_about_one() -> None:
    assert tuple(printed(EVERY_MODULE)) == OF_A_FRAMEWORK


ALL_OTHERS = """
import importlib, json, pkgutil, sys
import mixer_equiv

left_out = tuple(json.loads(sys.argv[1]))

def walk(path, prefix):
    for module in pkgutil.iter_modules(path, prefix):
        if module.name in left_out or module.name.endswith("__main__"):
            continue
        imported = importlib.import_module(module.name)
        if module.ispkg:
            walk(imported.__path__, module.name + ".")

walk(mixer_equiv.__path__, "mixer_equiv.")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_others_load_no_framework_where_there_is_one() -> None:
    assert not FRAMEWORKS & set(printed(ALL_OTHERS, json.dumps(OF_A_FRAMEWORK)))


# An import for each of the contracts in pyproject.toml that breaks it, and where it is planted.
VIOLATIONS = {
    "Imports run downward": ("errors", "if TYPE_CHECKING:\n    from mixer_equiv.config import MixerConfig"),
    "Imports run downward inside equivalence": (
        "equivalence.policy",
        "def f():\n    from mixer_equiv.equivalence.verify import verify",
    ),
    "Imports run downward inside checkpoints": (
        "checkpoints.infer",
        "import mixer_equiv.checkpoints.surgery",
    ),
    "No module needs the whole package": ("layouts.base", "import mixer_equiv"),
    "Models know sizes and operations, and nothing that converts or compares": (
        "models.numpy",
        "from mixer_equiv.layouts import LINEN",
    ),
    "Models do not know each other; the two of Flax share their activations": (
        "models.torch.model",
        "def f():\n    from mixer_equiv.models import nnx",
    ),
    "The torch model knows no JAX": ("models.torch.replacement_layers", "def f():\n    import jax"),
    "The Flax models know no torch": ("models.nnx", "def f():\n    import torch"),
    "The NumPy model knows no framework": ("models.numpy", "def f():\n    from flax import linen"),
    "The matcher knows no Mixer": ("equivalence.match.parameter_search", "from mixer_equiv.config import MixerConfig"),
    "Diagnosis does not know the faults that are planted": (
        "equivalence.judge.causes",
        "def f():\n    from mixer_equiv.equivalence.faults import planted_code",
    ),
    "Strategies draw without comparing": (
        "testing.strategies",
        "if TYPE_CHECKING:\n    from mixer_equiv.equivalence.policy import Policy",
    ),
    "Terminals and pages are for render and the command line": ("arrays.interop", "def f():\n    import rich"),
    "Pages are for render alone": ("cli.output", "def f():\n    import jinja2"),
}


def contracts(folder: Path) -> dict[str, str]:
    """KEPT or BROKEN, for each contract of the package in `folder`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "COLUMNS": "200"})
    found = re.findall(r"^(.*?) (KEPT|BROKEN)\b", finished.stdout, re.MULTILINE)
    assert found, finished.stdout + finished.stderr
    return dict(found)


def test_every_contract_on_imports_is_kept() -> None:
    assert set(contracts(ROOT).values()) == {"KEPT"}


def test_every_contract_on_imports_is_broken_by_an_import_that_is_planted(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mixer_equiv", tmp_path / "mixer_equiv", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, planted in VIOLATIONS.values():
        path = tmp_path / "mixer_equiv" / f"{module.replace('.', '/')}.py"
        path.write_text(f"{path.read_text()}\n\nfrom typing import TYPE_CHECKING\n{planted}\n")
    assert contracts(tmp_path) == dict.fromkeys(VIOLATIONS, "BROKEN")


def imported(source: str) -> set[str]:
    """Modules of the tests that a source imports, also in the scripts that it has as strings."""
    lines = re.findall(r"^\s*from (tests[\w.]*) import (.*)|^\s*import (tests[\w.]*)", source, re.MULTILINE)
    return {f"{module}.{name}" for module, names, _ in lines for name in re.findall(r"\w+", names)} | {
        name for line in lines for name in (line[0], line[2]) if name
    }


def test_no_module_of_tests_imports_a_test_module() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        modules = {name for name in imported(path.read_text()) if ".test_" in name}
        assert not modules, f"{path.relative_to(ROOT)} imports {modules}"


def test_benchmarks_and_the_package_import_no_tests() -> None:
    for folder in ("benchmarks", "mixer_equiv", "docs", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert not imported(path.read_text()), path.relative_to(ROOT)


@pytest.mark.parametrize(
    "line", ["from tests.a.test_b import c", "    import tests.test_b", "from tests.a import b, test_c"]
)
def test_an_import_of_a_test_module_is_seen(line: str) -> None:
    assert any(".test_" in name for name in imported(f'SCRIPT = """\n{line}\n"""'))


STEPS = ("MixerBlock", "token_mixing", "channel_mixing", "stem", "head/", "pre_head")


def mixer_words(source: str) -> list[str]:
    return [step for step in STEPS if step in source]


MATCHER = [
    *sorted((ROOT / "mixer_equiv/equivalence/match").glob("*.py")),
    ROOT / "mixer_equiv/equivalence/record/trace.py",
]


@pytest.mark.parametrize("path", MATCHER, ids=lambda path: path.stem)
def test_the_matcher_names_no_step_of_a_mixer(path: Path) -> None:
    assert mixer_words(path.read_text()) == []


def test_a_step_of_a_mixer_is_noticed_in_the_matcher() -> None:
    assert mixer_words("if name == 'stem':\n    pass") == ["stem"]
