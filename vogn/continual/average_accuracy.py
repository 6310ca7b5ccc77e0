"""Average accuracy over all tasks at the end."""

from __future__ import annotations

from vogn.continual.accuracy_matrix import Matrix, checked


def average_accuracy(matrix: Matrix) -> float:
    """``1/T sum_j R[T-1][j]``, in [0, 1].

    Args:
        matrix: ``R``, ``(T, T)``; see :data:`vogn.continual.accuracy_matrix.Matrix`.

    Raises:
        ValueError: if it is no accuracy matrix.

    Source: Lopez-Paz, Ranzato (2017), "Gradient Episodic Memory for Continual Learning".
    """
    return float(checked(matrix)[-1].mean())
