"""What the methods in sample space have in common."""

from __future__ import annotations


def batch_decay(curvature_decay: float | None, variational: bool) -> float:
    """The default memory: none for the step of the present batch, 0.95 for a posterior, which needs more evidence.

    Args:
        curvature_decay: what the user asked for; ``None`` for the default.
        variational: the mode at the start.
    """
    if curvature_decay is not None:
        return curvature_decay
    return 0.95 if variational else 0.0
