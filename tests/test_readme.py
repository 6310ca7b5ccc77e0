"""Every Python block of the README runs, top to bottom, in one namespace."""

import re
import subprocess
import sys
from pathlib import Path

import pages

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages.run(ROOT / "README.md")


def test_readme_names_every_method():
    from vogn.optim import METHODS

    for name, info in METHODS.items():
        assert f"`{name}`" in README and f"`{info.constructor.__name__}`" in README


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)$", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
    text = subprocess.run([sys.executable, "-m", "vogn.cli", "--help"], capture_output=True, text=True, cwd=ROOT).stdout
    for command in set(re.findall(r"^vogn ([a-z]+)", README, flags=re.MULTILINE)):
        assert command in text


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert all((ROOT / link).exists() for link in links)
