"""Smooth convex problems of a few numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.errors import RecalibrationError

_SMALL_SLOPE = 1e-5


def minimise(objective: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, *, name: str) -> Tensor:
    """The minimum by L-BFGS.

    Args:
        objective: value and gradient, at ``(P,)`` in float64.
        start: ``(P,)``, float64.
        name: what is fitted, for messages.

    Raises:
        RecalibrationError: if it was not found.
    """
    from scipy.optimize import minimize

    def call(x: object) -> tuple[float, object]:
        value, gradient = objective(torch.as_tensor(x, dtype=torch.float64))
        return float(value), gradient.numpy()

    options = {"maxiter": 2000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(call, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    slope = float(abs(found.jac).max())
    if not slope <= _SMALL_SLOPE:  # the line search may give up at the last digit, where it has arrived all the same
        raise RecalibrationError(f"{name} did not converge: slope {slope:g} after {found.nit} steps ({found.message})")
    return torch.as_tensor(found.x, dtype=torch.float64)


def spread(values: Tensor) -> Tensor:
    """Standard deviation over the first dimension, 1 where it is 0: the unit in which slopes are of one size."""
    found = values.std(0, correction=0)
    return torch.where(found > 0, found, torch.ones_like(found))
