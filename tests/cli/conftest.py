"""A tiny data set and a way to call the command line inside this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from real_tables import save


@dataclass(frozen=True)
class Outcome:
    """What a call left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def table(tmp_path):
    """``npz:FILE`` with numbers to predict, of a scale of their own."""
    return save(tmp_path / "table.npz", unit=20.0, offset=300.0)


@pytest.fixture
def tiny(tmp_path):
    """``npz:FILE`` with 60 training and 20 test images of 8 x 8 pixels in 3 classes."""
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 3
    images = generator.normal(size=(80, 8, 8)).astype(np.float32) + labels[:, None, None]
    path = tmp_path / "tiny.npz"
    np.savez(path, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return f"npz:{path}"


@pytest.fixture
def vogn(capsys, monkeypatch, tmp_path):
    """Run the command line with the given arguments, in an empty folder, as the console script would."""
    from vogn.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vogn", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call
