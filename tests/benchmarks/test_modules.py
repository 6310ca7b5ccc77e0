"""Every benchmark can be started: what it imports from the others is there."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if path.name != "__main__.py"
]


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_imports_what_there_is(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:  # a package that only benchmarks need
        if (error.name or "").split(".")[0] in ("benchmarks", "vogn"):
            raise
        pytest.skip(f"{error.name} is not installed")
