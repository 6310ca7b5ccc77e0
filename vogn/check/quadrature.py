"""Posteriors over one or two parameters, summed over a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vogn.check.reference import LEVELS, Reference, affine_map
from vogn.check.statistics import weighted_quantiles
from vogn.check.target import Target

POINTS = 201
"""Grid points per parameter."""
BORDER = 25.0
"""The log density at the border of the grid lies at least this much below the largest: little is cut off."""
ROWS = 2000
"""Grid points whose outputs are formed at a time."""
KEPT = 1e-9
"""Grid points with less than this share of the largest density are left out of the predictions."""


@torch.no_grad()
def quadrature(target: Target, at: Any) -> Reference:
    """Mean, variance and quantiles of the predictions, with the density evaluated on a grid.

    The grid's axes are the principal axes of the curvature at the mode, its half width eight standard deviations of
    that Gaussian, doubled until the density at the border is negligible.

    Args:
        target: at most two uncertain parameters, outputs linear in them, a log-concave density.
        at: inputs.
    """
    mode, covariance = _mode(target)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.sqrt()
    width, points, weights = 4.0, mode[None], torch.ones(1, dtype=torch.float64)
    for _ in range(20):
        width *= 2.0
        axis = torch.linspace(-width, width, POINTS, dtype=torch.float64)
        cells = torch.cartesian_prod(*[axis] * target.numel).view(-1, target.numel)
        points = mode + cells @ root.T
        log_density = -_energies(target, points)
        log_density -= log_density.max()
        weights = log_density.exp()
        edge = (cells.abs() == width).any(1)
        if float(log_density[edge].max()) < -BORDER:
            break
    kept = weights > KEPT
    weights = weights[kept] / weights[kept].sum()
    offset, design = affine_map(target, at)
    outputs = offset + torch.einsum("...d,gd->g...", design, points[kept])
    samples = target.observed(outputs)
    mean = torch.tensordot(weights, samples, 1)
    variance = torch.tensordot(weights, (samples - mean).square(), 1)
    probabilities = [p for level in LEVELS for p in (0.5 - 0.5 * level, 0.5 + 0.5 * level)]
    ends = weighted_quantiles(samples, weights, probabilities)
    intervals = {level: (ends[2 * k], ends[2 * k + 1]) for k, level in enumerate(LEVELS)}
    return Reference("quadrature", mean, variance, intervals)


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
    found = []
    for part in points.split(ROWS):
        outputs = offset + torch.einsum("...d,gd->g...", design, part)
        flat = outputs.flatten(0, 1)
        targets = target.targets.expand(len(part), *target.targets.shape).flatten(0, 1)
        loss = target.likelihood.terms(flat, targets).view(len(part), -1).sum(1)
        penalty = (target.prior_precision * (part - target.prior_mean).square()).sum(1)
        found.append(target.ess / target.terms * loss + 0.5 * penalty)
    return torch.cat(found)
