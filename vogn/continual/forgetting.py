"""How far accuracies have fallen from their best."""

from __future__ import annotations

from vogn.continual.accuracy_matrix import Matrix, checked


def forgetting(matrix: Matrix) -> float:
    """``1/(T-1) sum_(j < T-1) (max_(i < T-1) R[i][j] - R[T-1][j])``, in [-1, 1]; small is good.

    Args:
        matrix: ``R``, ``(T, T)``.

    Returns:
        The mean over all tasks but the last; 0 for a single task. The best is taken over all rows but the last, from
        the row of the task on.

    Raises:
        ValueError: if it is no accuracy matrix.

    Source: Chaudhry et al. (2018), "Riemannian Walk for Incremental Learning".
    """
    found = checked(matrix)
    last = len(found) - 1
    falls = [found[j:last, j].max() - found[last, j] for j in range(last)]
    return float(sum(falls) / last) if last else 0.0
