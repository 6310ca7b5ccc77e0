"""What the accuracy matrix must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Matrix = Sequence[Sequence[float]] | np.ndarray
"""``R[i][j]``: the accuracy on task ``j`` after task ``i`` was trained, in [0, 1]."""


def checked(matrix: Matrix) -> np.ndarray:
    """The matrix in float64, ``(T, T)``.

    Raises:
        ValueError: if it is not square, empty, or an entry is no number in [0, 1].
    """
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not len(found):
        raise ValueError(f"an accuracy matrix is square, one row and one column per task; got shape {found.shape}")
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError("an accuracy matrix holds accuracies in [0, 1], without NaN; were all tasks tested?")
    return found
