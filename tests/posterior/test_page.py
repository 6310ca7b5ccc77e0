"""The code of docs/posteriors.md runs from top to bottom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pages

import vogn
from vogn.posterior.loading import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "posteriors.md").read_text()


def test_the_pages_code_runs(tmp_path):
    code = "\n".join(pages.blocks(ROOT / "docs" / "posteriors.md"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    for shape in ("[5, 3]", "[15, 15]", "[20, 64]"):
        assert f"torch.Size({shape})" in found.stdout


def test_the_page_names_every_kind():
    for kind in KINDS.values():
        assert getattr(vogn, kind.__name__) is kind
        assert f"| `{kind.__name__}` |" in PAGE
