"""Runs ``interpreted.py`` and ``interpreted_engine.py`` in a process of their own; see there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("file", ["interpreted.py", "interpreted_engine.py"], ids=["kernels", "engine"])
def test_the_triton_kernels_equal_their_references_in_the_interpreter(file):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "VOGN_KERNELS"))}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kernels/{file}"],
        cwd=ROOT,
        env=environment | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert re.search(r"\d\d passed", result.stdout) and "skipped" not in result.stdout, result.stdout
