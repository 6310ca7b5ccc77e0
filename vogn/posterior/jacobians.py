"""Jacobians by parameter name, times directions in parameter space."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def projections(jacobian: Mapping[str, Tensor], directions: Mapping[str, Tensor]) -> Tensor:
    """``J d_s`` for several directions.

    Args:
        jacobian: ``{name: (B, K, *shape)}`` for every parameter of the directions; others are ignored.
        directions: ``{name: (S, *shape)}``, not empty.

    Returns:
        ``(B, K, S)``.

    Raises:
        ValueError: if a parameter is missing or has another shape.
    """
    total: Tensor | None = None
    for name, direction in directions.items():
        if name not in jacobian:
            raise ValueError(f"the Jacobian of parameter {name!r} is missing; got {sorted(jacobian)}")
        rows = jacobian[name]
        if rows.ndim != direction.ndim + 1 or rows.shape[2:] != direction.shape[1:]:
            raise ValueError(
                f"the Jacobian of parameter {name!r} must have shape (B, K) + {tuple(direction.shape[1:])}, "
                f"got {tuple(rows.shape)}"
            )
        flat = direction.reshape(len(direction), -1)
        term = rows.to(direction).reshape(*rows.shape[:2], -1) @ flat.T
        total = term if total is None else total + term
    if total is None:
        raise ValueError("there are no directions to project on")
    return torch.as_tensor(total)
