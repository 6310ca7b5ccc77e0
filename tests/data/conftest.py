"""Data sets in files."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def save(tmp_path):
    """Writes arrays; returns ``npz:FILE``."""

    def write(**content):
        path = tmp_path / "data.npz"
        np.savez(path, **content)
        return f"npz:{path}"

    return write
