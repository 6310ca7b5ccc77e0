"""How new evidence enters a curvature that is stored elementwise, and the checks on what comes out."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.structures.base import Negative, Shift


def blend(old: Tensor, new: Tensor, decay: float, weight: float) -> Tensor:
    """``decay * old + weight * new``."""
    return torch.mul(old, decay).add_(new, alpha=weight)


def absorb(c: Tensor, h: Tensor, *, decay: float, weight: float, shift: Shift, negative: Negative) -> Tensor:
    """Blend evidence ``h`` of any sign into eigenvalues ``c``.

    Args:
        c: current eigenvalues with ``c + shift > 0`` for ``"retract"``.
        h: evidence of the same shape.
        decay: factor on ``c``.
        weight: factor on ``h``.
        shift: the prior's part of the precision.
        negative: ``"raise"`` if ``c + shift`` would become negative; ``"clamp"`` or ``"abs"`` the evidence; or
            ``"retract"``: with ``delta = weight h - (1 - decay) c`` the new value is
            ``c + delta + delta^2 / (2 (c + shift))``, so ``c + shift`` at most halves and stays positive for any ``h``.

    Raises:
        NotPositiveDefiniteError: see ``negative``.
        NonFiniteStatisticsError: if a checked value is NaN.

    Source: Lin, Schmidt, Khan 2020, "Handling the positive-definite constraint in the Bayesian learning rule", eq. 9;
    Shen et al. 2024 (IVON), algorithm 1.
    """
    if negative == "clamp":
        return blend(c, h.clamp_min(0.0), decay, weight)
    if negative == "abs":
        return blend(c, h.abs(), decay, weight)
    if negative == "raise":
        new = blend(c, h, decay, weight)
        _require_not_negative(new + shift)
        return new
    shifted = c + shift
    if not isinstance(shift, Tensor) and shift <= 0:
        require_positive(shifted)
    delta = torch.mul(h, weight).sub_(c, alpha=1.0 - decay)
    new = c + delta
    new.addcdiv_(delta.square_(), shifted, value=0.5)
    # many halvings in a row end in the rounding of the shift: keep c + shift above it
    margin = 4.0 * torch.finfo(c.dtype).eps - 1.0
    return torch.maximum(new, margin * shift) if isinstance(shift, Tensor) else new.clamp_min_(margin * shift)


def require_positive_without_shift(values: Tensor, shift: Shift) -> Tensor:
    """Return the shifted eigenvalues; check them only where no positive shift guarantees that they are positive."""
    if not isinstance(shift, Tensor) and shift <= 0:
        require_positive(values)
    return values


def require_positive(values: Tensor) -> None:
    """Raise unless every eigenvalue of a curvature plus its shift is positive."""
    if not values.numel():
        return  # a process may hold no element of a block
    smallest = values.min()
    if not bool(smallest > 0):
        _raise(float(smallest), "set weight_decay, damping or initial_curvature above 0")


def _require_not_negative(values: Tensor) -> None:
    if not values.numel():
        return
    smallest = values.min()
    if not bool(smallest >= 0):
        _raise(
            float(smallest),
            "the evidence is indefinite: use negative='retract', 'clamp' or 'abs', or a larger weight_decay",
        )


def _raise(smallest: float, remedy: str) -> None:
    if smallest != smallest:
        raise NonFiniteStatisticsError("a curvature holds NaN; check the loss scale and the inputs")
    raise NotPositiveDefiniteError(f"an eigenvalue of a curvature plus its shift is {smallest:.3g}; {remedy}")
