"""Every way in which cosmic-ray's operators change a module, without those that change nothing that runs."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
EQUIVALENT = ROOT / "tests" / "mutation" / "equivalent_mutants.toml"

LAYOUTS = ("layouts/test_tables.py", "layouts/test_layouts.py", "layouts/test_custom.py", "checkpoints/test_infer.py")
# Each module with the tests that are about it.
MODULES: dict[str, tuple[str, ...]] = {
    "mixer_equiv/layouts/base.py": LAYOUTS,
    "mixer_equiv/layouts/detect.py": LAYOUTS,
    "mixer_equiv/layouts/custom.py": LAYOUTS,
    "mixer_equiv/layouts/__init__.py": LAYOUTS,
    "mixer_equiv/checkpoints/conversion.py": (
        "checkpoints/test_relabel.py",
        "layouts/test_custom.py",
        "checkpoints/test_conversion.py",
    ),
    "mixer_equiv/checkpoints/differences.py": ("checkpoints/test_differences.py",),
    "mixer_equiv/config.py": ("test_config.py", "layouts/test_layouts.py"),
    "mixer_equiv/equivalence/policy.py": ("equivalence/test_policy.py",),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one place changed. `name` is the changed lines, which line numbers do not make stale."""

    module: str
    code: str
    name: str


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """Where one of cosmic-ray's operators can change a module: the how manyth of its places there."""

    module: str
    operator: str
    number: int


def places(module: str, source: str) -> list[Place]:
    """Every place of a module and every operator that needs no arguments."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes, found = list(ast_nodes(get_ast(source))), []
    for name in operator_names():
        if not get_operator(name).arguments():
            operator = get_operator(name)()
            count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
            found += [Place(module, name, number) for number in range(count)]
    return sorted(found)


def sample(sources: Mapping[str, str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of modules, or all for 0, drawn evenly; each once, and none that is no Python."""
    everywhere = [place for module, source in sources.items() for place in places(module, source)]
    random.Random(seed).shuffle(everywhere)
    meant = {module: meaning(source) for module, source in sources.items()}
    found: dict[str, Mutant] = {}
    for place in everywhere:
        if count and len(found) == count:
            break
        code = mutated(sources[place.module], place)
        if code is not None and meaning(code) not in (None, meant[place.module]):
            mutant = Mutant(place.module, code, changed_lines(place.module, sources[place.module], code))
            found.setdefault(mutant.name, mutant)
    return sorted(found.values(), key=lambda mutant: list(sources).index(mutant.module))


def mutated(source: str, place: Place) -> str | None:
    """The source changed in that place; None where the operator leaves it as it is."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source, get_operator(place.operator)(), place.number)


def meaning(source: str) -> str | None:
    """What of the source runs: no docstrings, annotations and overloads. None for what is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    return ast.dump(_Meaning().visit(tree))


class _Meaning(ast.NodeTransformer):
    """Takes out what only readers and type checkers see."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        names = {
            part.id for decorator in node.decorator_list for part in ast.walk(decorator) if isinstance(part, ast.Name)
        }
        if "overload" in names or [ast.unparse(line) for line in node.body] == ["..."]:
            return None
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Name("object")
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)


def changed_lines(module: str, source: str, code: str) -> str:
    """The module's path, and below it the lines that are gone and those that are new, with a line before and behind."""
    diff = difflib.unified_diff(source.splitlines(), code.splitlines(), n=1, lineterm="")
    return "\n".join([module, *(line for line in list(diff)[2:] if not line.startswith("@@"))])


def equivalent(text: str | None = None) -> Mapping[str, str]:
    """Mutants judged to be the same program, by name, with the reason: those of `EQUIVALENT`."""
    entries = tomllib.loads(EQUIVALENT.read_text() if text is None else text).get("mutant", [])
    return {entry["lines"].strip("\n"): entry["reason"] for entry in entries}
