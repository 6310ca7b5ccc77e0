"""What earlier tasks did for later ones, before these were trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vogn.continual.accuracy_matrix import Matrix, checked


def forward_transfer(matrix: Matrix, baseline: Sequence[float] | np.ndarray) -> float:
    """``1/(T-1) sum_(j >= 1) (R[j-1][j] - b[j])``, in [-1, 1].

    Args:
        matrix: ``R``, ``(T, T)``.
        baseline: ``b``, ``(T,)``: accuracies of the network before any training. With a head for each task both terms
            are those of a head that nobody has trained.

    Returns:
        The mean over all tasks but the first; 0 for a single task.

    Raises:
        ValueError: if it is no accuracy matrix, or the baseline has another length.

    Source: Lopez-Paz, Ranzato (2017).
    """
    found, before = checked(matrix), np.asarray(baseline, dtype=np.float64)
    if before.shape != (len(found),):
        raise ValueError(f"the baseline has shape {before.shape}, there are {len(found)} tasks")
    return float((np.diag(found, 1) - before[1:]).mean()) if len(found) > 1 else 0.0
