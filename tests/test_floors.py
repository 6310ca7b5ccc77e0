"""Imports only go down the floors, and the packages of floor 2 never import one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "vogn"

FLOORS = {
    "errors": 0, "types": 0, "announcement": 0, "terminal": 0, "kernels": 0,
    "linalg": 1,
    "structures": 2, "layers": 2, "likelihoods": 2, "distributed": 2,
    "capture": 3,
    "posterior": 4,
    "optim": 5, "predict": 5, "models": 5, "metrics": 5, "data": 5,
    "active": 6, "calibration": 6, "check": 6, "plots": 6, "rl": 6, "continual": 6,
    "sensitivity": 6, "pruning": 6, "distillation": 6,
    "cli": 7, "interop": 7, "sklearn": 7, "report": 7,
    "testing": 8,
}  # fmt: skip
PUBLIC = ""
"""The package itself, ``import vogn``: everything public, so it may be imported from floor 7 and above only."""


def floor(unit: str) -> int:
    return 7 if unit == PUBLIC else FLOORS[unit]


def allowed(source: str, target: str) -> bool:
    """Down, inside the same unit, or between the equals of floor 0; the package's own ``__init__`` may import all."""
    if source in (PUBLIC, target):
        return True
    return floor(target) < floor(source) or floor(source) == floor(target) in (0, 7)


def unit_of_file(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return PUBLIC if parts == ("__init__",) else parts[0]


def unit_of_module(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else PUBLIC


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported_modules(tree: ast.AST, package: list[str]) -> list[tuple[int, str]]:
    """``(line, module)`` of every import of the package's own modules, inside functions too, except for annotations."""
    found: list[tuple[int, str]] = []
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            for other in node.orelse:
                found += imported_modules(ast.Module([other], []), package)
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "vogn":  # each name may be a module of its own
                found += [(node.lineno, f"vogn.{a.name}" if a.name in FLOORS else "vogn") for a in node.names]
            else:
                found.append((node.lineno, module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.append((node.lineno, first.value))
        found += imported_modules(node, package)
    return [(line, name) for line, name in found if name.split(".")[0] == "vogn"]


def violations(source: str, path: Path) -> list[str]:
    package = ["vogn", *path.relative_to(ROOT).parent.parts]
    unit = unit_of_file(path)
    return [
        f"{path.relative_to(ROOT.parent)}:{line}: floor {floor(unit)} ({unit}) imports {name} (floor {floor(target)})"
        for line, name in imported_modules(ast.parse(source), package)
        if not allowed(unit, target := unit_of_module(name))
    ]


def test_every_module_has_a_floor():
    units = {unit_of_file(path) for path in ROOT.rglob("*.py")} - {PUBLIC}
    assert units <= set(FLOORS)


def test_imports_only_go_down():
    paths = sorted(ROOT.rglob("*.py"))
    assert len(paths) > 20
    found = [line for path in paths for line in violations(path.read_text(), path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("linalg/x.py", "from vogn.structures.base import Structure"),
        ("structures/x.py", "from vogn import layers"),
        ("structures/x.py", "def f():\n    from vogn.likelihoods import Categorical"),
        ("layers/x.py", "from ..structures import base"),
        ("posterior/x.py", "import vogn.optim.base as base"),
        ("optim/x.py", "from vogn import VOGN"),
        ("optim/x.py", "import vogn"),
        ("kernels/x.py", "import importlib\nimportlib.import_module('vogn.linalg.rows')"),
        ("capture/x.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from vogn.cli import main"),
    ],
)
def test_the_check_sees_every_way_up(file, source):
    assert violations(source, ROOT / file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("structures/x.py", "from vogn.linalg import rows\nfrom vogn.structures.base import Structure\nimport torch"),
        ("structures/x.py", "from . import base\nfrom .base import Structure"),
        ("linalg/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vogn.structures import base"),
        ("cli/x.py", "import vogn\nfrom vogn import VOGN, data"),
        ("kernels/x.py", "from vogn.errors import VognError"),
    ],
)
def test_the_check_lets_sound_imports_pass(file, source):
    assert not violations(source, ROOT / file)
