"""What later tasks did to earlier ones."""

from __future__ import annotations

import numpy as np

from vogn.continual.accuracy_matrix import Matrix, checked


def backward_transfer(matrix: Matrix) -> float:
    """``1/(T-1) sum_(j < T-1) (R[T-1][j] - R[j][j])``, in [-1, 1]; negative where tasks are forgotten.

    Args:
        matrix: ``R``, ``(T, T)``.

    Returns:
        The mean over all tasks but the last; 0 for a single task.

    Raises:
        ValueError: if it is no accuracy matrix.

    Source: Lopez-Paz, Ranzato (2017).
    """
    found = checked(matrix)
    return float((found[-1] - np.diag(found))[:-1].mean()) if len(found) > 1 else 0.0
