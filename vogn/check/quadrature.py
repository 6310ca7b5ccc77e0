"""Posteriors over one or two parameters, summed over a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vogn.check.reference import LEVELS, Reference, affine_map
from vogn.check.statistics import weighted_quantiles
from vogn.check.target import Target

COARSE = 201
"""Points per parameter of the grid that finds where the density is."""
FINE = {1: 4001, 2: 401}
"""Number of parameters to points per parameter of the grid that is summed over."""
BORDER = 25.0
"""The log density at the grid's border lies at least this much below the largest: what is cut off is negligible."""
ROWS = 2000
"""Grid points whose density is found at a time."""
KEPT = 1e-9
"""Grid points with less than this share of the largest density are left out of the predictions."""
NUMBERS = 1 << 22
"""Outputs at so many inputs at a time as keep to this many numbers over all grid points."""


@torch.no_grad()
def quadrature(target: Target, at: Any) -> Reference:
    """Mean, variance and quantiles of the predictions, with the density evaluated on a grid.

    The grid's axes are the principal axes of the curvature at the mode. A coarse grid is widened until the density at
    its border is negligible; the fine grid fills the box where the density is not.

    Args:
        target: at most two uncertain parameters, outputs linear in them, a log-concave density.
        at: inputs.
    """
    mode, covariance = _mode(target)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.sqrt()
    box = _box(target, mode, root)
    points = mode + _grid(box, FINE[target.numel]) @ root.T
    log_density = -_energies(target, points)
    weights = (log_density - log_density.max()).exp()
    kept = weights > KEPT
    weights = weights[kept] / weights[kept].sum()
    points = points[kept]
    probabilities = [p for level in LEVELS for p in (0.5 - 0.5 * level, 0.5 + 0.5 * level)]
    offset, design = affine_map(target, at)
    at_a_time = max(1, NUMBERS // (len(points) * max(1, offset[0].numel())))
    parts = []
    for start, slope in zip(offset.split(at_a_time), design.split(at_a_time), strict=True):
        samples = target.observed(start + torch.einsum("...d,gd->g...", slope, points))
        mean = torch.tensordot(weights, samples, 1)
        variance = torch.tensordot(weights, (samples - mean).square(), 1)
        parts.append(torch.stack([mean, variance, *weighted_quantiles(samples, weights, probabilities)]))
    mean, variance, *ends = torch.cat(parts, 1)
    intervals = {level: (ends[2 * k], ends[2 * k + 1]) for k, level in enumerate(LEVELS)}
    return Reference("quadrature", mean, variance, intervals)


def _grid(box: Tensor, points: int) -> Tensor:
    """All points of a grid that fills a box ``(D, 2)``; ``(points^D, D)``."""
    axes = [torch.linspace(float(low), float(high), points, dtype=torch.float64) for low, high in box]
    return torch.cartesian_prod(*axes).view(-1, len(box))


def _box(target: Target, mode: Tensor, root: Tensor) -> Tensor:
    """Where the density is not negligible, ``(D, 2)``, along the columns of ``root`` from the mode."""
    width = 4.0
    for _ in range(30):
        width *= 2.0
        cells = _grid(torch.tensor([[-width, width]] * target.numel), COARSE)
        log_density = -_energies(target, mode + cells @ root.T)
        inside = cells[log_density > log_density.max() - BORDER]
        if float(inside.abs().max()) < width:
            break
    margin = 2.0 * width / (COARSE - 1)
    return torch.stack([inside.amin(0) - margin, inside.amax(0) + margin], 1)


def _mode(target: Target) -> tuple[Tensor, Tensor]:
    """The maximum of the density by damped Newton steps, and the inverse Hessian there."""
    flat = target.prior_mean.clone()
    with torch.enable_grad():
        for _ in range(100):
            gradient = torch.func.grad(target.energy)(flat)
            hessian = torch.func.hessian(target.energy)(flat)
            step, share, before = torch.linalg.solve(hessian, gradient), 1.0, target.energy(flat)
            while share > 1e-6 and target.energy(flat - share * step) > before:
                share *= 0.5
            flat = flat - share * step
            if float(step.abs().max()) < 1e-12 * (1.0 + float(flat.abs().max())):
                break
        return flat.detach(), torch.linalg.inv(torch.func.hessian(target.energy)(flat)).detach()


def _energies(target: Target, points: Tensor) -> Tensor:
    """Minus the log density at every point, ``(G, D)`` to ``(G,)``."""
    offset, design = affine_map(target, target.inputs)

    def energy(flat: Tensor) -> Tensor:
        return target.energy_of(flat, offset + design @ flat)

    return torch.func.vmap(energy, chunk_size=ROWS)(points)
