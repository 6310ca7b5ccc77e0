"""Every example runs, is short, and says what it asks."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_asks_a_question(path):
    source = path.read_text()
    assert len(source.splitlines()) < 150
    question = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    assert question.endswith("?")


QUICK = [path for path in EXAMPLES if path.stem[:2] in ("01", "02", "03")]
RUNS = [pytest.param(path, marks=() if path in QUICK else pytest.mark.slow, id=path.stem) for path in EXAMPLES]
"""Together the examples take minutes: all but the first run with the slow tests."""


@pytest.mark.parametrize("path", RUNS)
def test_example_runs(path, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "nan" not in result.stdout
