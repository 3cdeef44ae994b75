"""What may import what, what works without the frameworks, and that JAX's precision is left as it was."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_equiv
from mixer_equiv import MissingDependencyError
from mixer_equiv.equivalence.sides.side import DEFAULT_CONFIG
from mixer_equiv.equivalence.sides.weights import random_params

FRAMEWORKS = frozenset({"torch", "jax", "jaxlib", "flax"})


def python(script: str, *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def printed(script: str, *arguments: Any, **environment: str) -> Any:
    """The JSON that a script prints; it must succeed."""
    finished = python(script, *arguments, **environment)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


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

BLOCKED = """
import json, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "jax", "jaxlib", "flax"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

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
from tests.structures.ports import PortMixer
from tests.test_foreign import IMAGE, SMALL

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


# The direction of imports

PACKAGE = Path(mixer_equiv.__file__).parent

# From the bottom up; a name stands for the module and all that is below it.
LAYERS = (
    ("errors",),
    ("config", "formulation", "arrays", "operations"),
    ("layouts",),
    ("checkpoints",),
    ("models", "report", "page", "data", "random_weights"),
    ("equivalence",),
    ("testing",),
    ("bench",),
    ("cli", "__main__", "__init__"),
)
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}

# Modules that must not load a framework when they are imported, even by way of our models.
LIGHT = ("errors", "config", "operations", "arrays", "layouts", "checkpoints", "random_weights", "testing.strategies")
OUR_MODELS = "mixer_equiv.models"

# What the models must not know, so that they can be held against each other.
_MODELS = {"torch": ("jax", "flax"), "flax": ("torch",), "nnx": ("torch",), "reference": tuple(sorted(FRAMEWORKS))}
_MODULES = {**_MODELS, **{f"{name}_formulations": _MODELS[name] for name in ("torch", "flax")}}
_PARTS_OF_TORCH = (
    "activations",
    "fused",
    "inference",
    "modules",
    "packed",
    "packed_blas",
    "packed_onednn",
    "processor",
)
_MODULES.update({f"torch_{name}": _MODELS["torch"] for name in _PARTS_OF_TORCH})
_MODULES["jax_activations"] = ("torch",)
_OF_JAX = ("flax", "nnx")


def _may_know(model: str, other: str) -> bool:
    return model == other or (other == "jax" and model in _OF_JAX)


STRANGERS = {
    f"models.{name}": (
        *frameworks,
        *(
            f"mixer_equiv.models.{other}"
            for other in _MODULES
            if not _may_know(name.partition("_")[0], other.partition("_")[0])
        ),
    )
    for name, frameworks in _MODULES.items()
}


def imported(source: str, module: str, *, when_called: bool) -> set[str]:
    """Absolute names of all that `source`, the text of `module`, imports; with `when_called`, in functions too.

    What only the type checker sees is left out.
    """
    return set(_imported(ast.parse(source), module, when_called))


def _imported(node: ast.AST, module: str, when_called: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        relative = "." * node.level + (node.module or "")
        base = importlib.util.resolve_name(relative, module.rpartition(".")[0]) if node.level else node.module
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.orelse:
            yield from _imported(child, module, when_called)
    elif when_called or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _imported(child, module, when_called)


def within(name: str, *roots: str) -> bool:
    """Whether `name` is one of `roots` or lies below one."""
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def heavy_imports(source: str, module: str) -> list[str]:
    """What a light module must not import when it is imported."""
    names = imported(source, module, when_called=False)
    return sorted(name for name in names if within(name, OUR_MODELS, *FRAMEWORKS))


def upward_imports(source: str, module: str) -> list[str]:
    """What a module imports, ever, from a layer above its own."""
    own = LAYER_OF[module.removeprefix("mixer_equiv.").partition(".")[0]]
    ours = [name for name in imported(source, module, when_called=True) if within(name, "mixer_equiv")]
    # What is no module of ours is exported by the package itself, which lies in the top layer.
    layer_of = {name: LAYER_OF.get(name.removeprefix("mixer_equiv.").partition(".")[0], len(LAYERS)) for name in ours}
    return sorted(name for name in ours if layer_of[name] > own)


def strange_imports(source: str, module: str) -> list[str]:
    """What a model imports, ever, of the others it is compared with."""
    strangers = STRANGERS[module.removeprefix("mixer_equiv.")]
    return sorted(name for name in imported(source, module, when_called=True) if within(name, *strangers))


def sources() -> dict[str, str]:
    """The text of every module of the package, by the module's name without the package's."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: path.read_text() for name, path in sorted(paths.items())}


SOURCES = sources()


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    assert {name.partition(".")[0] for name in SOURCES} == set(LAYER_OF)
    assert set(STRANGERS) == {name for name in SOURCES if name.startswith("models.")} - {"models.__init__"}


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_imports_upward(name: str) -> None:
    assert upward_imports(SOURCES[name], f"mixer_equiv.{name}") == []


@pytest.mark.parametrize("name", [name for name in SOURCES if within(name, *LIGHT)])
def test_light_modules_import_no_framework(name: str) -> None:
    assert heavy_imports(SOURCES[name], f"mixer_equiv.{name}") == []


@pytest.mark.parametrize("name", STRANGERS)
def test_models_do_not_know_each_other(name: str) -> None:
    assert strange_imports(SOURCES[name], f"mixer_equiv.{name}") == []


MATCHER = (
    "equivalence.match.matcher",
    "equivalence.match.moves",
    "equivalence.match.fits",
    "equivalence.match.variants",
    "equivalence.record.trace",
)
MIXERS = tuple(f"mixer_equiv.{name}" for name in ("models", "layouts", "config", "checkpoints"))


def mixer_knowledge(source: str, module: str) -> list[str]:
    """What the matcher, which knows operations and values, would know of Mixers: imports, and names of steps."""
    names = sorted(name for name in imported(source, module, when_called=True) if within(name, *MIXERS))
    steps = ("MixerBlock", "token_mixing", "channel_mixing", "stem", "head/", "pre_head")
    return names + [step for step in steps if step in source]


@pytest.mark.parametrize("name", MATCHER)
def test_the_matcher_knows_no_mixer(name: str) -> None:
    assert mixer_knowledge(SOURCES[name], f"mixer_equiv.{name}") == []


PLANTED = [
    (
        mixer_knowledge,
        "equivalence.match.matcher",
        "from mixer_equiv.layouts import LINEN",
        ["mixer_equiv.layouts.LINEN"],
    ),
    (
        mixer_knowledge,
        "equivalence.match.fits",
        "def f():\n    import mixer_equiv.models.torch",
        ["mixer_equiv.models.torch"],
    ),
    (mixer_knowledge, "equivalence.match.matcher", "if name == 'stem':\n    pass", ["stem"]),
    (heavy_imports, "checkpoints.conversion", "import torch", ["torch"]),
    (heavy_imports, "checkpoints.conversion", "import jax.numpy as jnp", ["jax.numpy"]),
    (heavy_imports, "arrays", "from torch import Tensor", ["torch.Tensor"]),
    (heavy_imports, "arrays", "try:\n    import flax\nexcept ImportError:\n    flax = None", ["flax"]),
    (
        heavy_imports,
        "checkpoints.checkpoint",
        "class C:\n    from mixer_equiv.models import torch",
        ["mixer_equiv.models.torch"],
    ),
    (heavy_imports, "surface", "from .models.flax import MlpMixer", ["mixer_equiv.models.flax.MlpMixer"]),
    (heavy_imports, "layouts.official", "from ..models import flax", ["mixer_equiv.models.flax"]),
    (heavy_imports, "arrays", "if TYPE_CHECKING:\n    import jax\nelse:\n    import torch", ["torch"]),
    (upward_imports, "errors", "from mixer_equiv.config import MixerConfig", ["mixer_equiv.config.MixerConfig"]),
    (
        upward_imports,
        "layouts.base",
        "import mixer_equiv.checkpoints.checkpoint",
        ["mixer_equiv.checkpoints.checkpoint"],
    ),
    (upward_imports, "checkpoints.conversion", "def f():\n    from mixer_equiv import cli", ["mixer_equiv.cli"]),
    (upward_imports, "report", "from .equivalence.verify import verify", ["mixer_equiv.equivalence.verify.verify"]),
    (upward_imports, "equivalence.verify", "import mixer_equiv", ["mixer_equiv"]),
    (upward_imports, "equivalence.verify", "from mixer_equiv import load", ["mixer_equiv.load"]),
    (
        strange_imports,
        "models.torch",
        "def f():\n    import mixer_equiv.models.flax",
        ["mixer_equiv.models.flax"],
    ),
    (strange_imports, "models.flax", "from mixer_equiv.models import torch", ["mixer_equiv.models.torch"]),
    (strange_imports, "models.reference", "import jax", ["jax"]),
]
ALLOWED = [
    (heavy_imports, "checkpoints.conversion", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    (heavy_imports, "checkpoints.conversion", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
    (heavy_imports, "checkpoints.conversion", "def f():\n    import torch"),
    (heavy_imports, "checkpoints.conversion", "from mixer_equiv.layouts import torch\nimport torchless"),
    (upward_imports, "checkpoints.checkpoint", "from mixer_equiv import layouts"),
    (upward_imports, "equivalence.verify", "from mixer_equiv.equivalence.report import Report\nimport numpy"),
    (strange_imports, "models.flax", "import flax.linen as nn\nfrom mixer_equiv.config import MixerConfig"),
]


@pytest.mark.parametrize(("law", "name", "source", "found"), PLANTED)
def test_a_planted_import_is_found(law: Any, name: str, source: str, found: list[str]) -> None:
    assert law(source, f"mixer_equiv.{name}") == found


@pytest.mark.parametrize(("law", "name", "source"), ALLOWED)
def test_an_import_that_is_allowed_is_not_found(law: Any, name: str, source: str) -> None:
    assert law(source, f"mixer_equiv.{name}") == []
