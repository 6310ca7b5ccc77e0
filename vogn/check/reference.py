"""The best available answer: exact, by quadrature, or by Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from vogn.check.target import Target

LEVELS = (0.5, 0.9, 0.95)
"""Central intervals that are compared."""
LINEARITY = 1e-9
"""Relative deviation up to which a network counts as linear in its parameters."""
LOG_CONCAVE = frozenset({"bernoulli", "categorical"})
"""Likelihoods whose posterior over the weights of a linear model has one mode: a grid around it misses nothing."""


@dataclass(frozen=True)
class Sampler:
    """How NUTS runs.

    Args:
        chains: >= 1; R-hat between chains needs two.
        warmup: iterations that adapt step size and diagonal mass matrix, >= 1 per chain.
        draws: kept iterations per chain, >= 4.
        tree_depth: at most ``2^tree_depth - 1`` leapfrog steps per draw, >= 1.
        target_accept: acceptance rate that warm-up aims at, in (0, 1).
        max_parameters: refuse more uncertain parameters than this.

    Raises:
        ValueError: if a number is out of range.
    """

    chains: int = 2
    warmup: int = 500
    draws: int = 500
    tree_depth: int = 8
    target_accept: float = 0.8
    max_parameters: int = 300

    def __post_init__(self) -> None:
        for name, least in {"chains": 1, "warmup": 1, "draws": 4, "tree_depth": 1, "max_parameters": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: it must be at least {least}")
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(f"target_accept={self.target_accept} must lie between 0 and 1")


@dataclass(frozen=True)
class Reference:
    """What a posterior is compared with, at given inputs.

    Args:
        name: ``"exact"``, ``"quadrature"`` or ``"nuts"``.
        mean: ``(N, ...)``, of the outputs for real targets, of the probabilities for labels.
        variance: the same shape, over the weights alone.
        intervals: ``{level: (low, high)}``, central intervals over the weights.
        r_hat: largest split R-hat of the predictions over inputs and outputs; ``None`` unless sampled.
        effective_samples: smallest effective sample size of a prediction; ``None`` unless sampled.
        divergences: number of divergent transitions after warm-up; ``None`` unless sampled.
        draws: kept draws of all chains; ``None`` unless sampled.
        ceiling: correlation over inputs between the predictive variances of the first chain and the last: what two
            equally good answers of this length reach; ``None`` unless there are two chains.
    """

    name: str
    mean: Tensor
    variance: Tensor
    intervals: Mapping[float, tuple[Tensor, Tensor]]
    r_hat: float | None = None
    effective_samples: float | None = None
    divergences: int | None = None
    draws: int | None = None
    ceiling: float | None = None


def make_reference(
    target: Target,
    at: Any,
    kind: str = "auto",
    *,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Reference:
    """The best available reference at the inputs ``at``.

    Args:
        target: from :func:`vogn.check.target.make_target`.
        at: inputs, as the model takes them, float64.
        kind: ``"exact"``, ``"quadrature"``, ``"nuts"``, or ``"auto"``: the first of these that applies.
        sampler: for NUTS.
        seed: for NUTS.
        progress: show NUTS' progress bar.

    Raises:
        ValueError: for an unknown kind, or one that does not apply, saying why.
    """
    if kind not in ("auto", *REFERENCES):
        raise ValueError(f"reference={kind!r}: choose 'auto', {', '.join(map(repr, REFERENCES))} or a Reference")
    with torch.no_grad():
        linear = kind != "nuts" and is_linear(target, at)
    why = {
        "exact": "" if linear and target.likelihood.kind == "gaussian" else
        "needs a model that is linear in its parameters and a Gaussian likelihood",
        "quadrature": "" if linear and target.numel <= 2 and target.likelihood.kind in LOG_CONCAVE else
        "needs labels and a model that is linear in at most 2 parameters",
        "nuts": "",
    }  # fmt: skip
    chosen = next(name for name in REFERENCES if not why[name]) if kind == "auto" else kind
    if why[chosen]:
        raise ValueError(f"reference={chosen!r} {why[chosen]}; this one has {target.numel} under {target.likelihood!r}")
    return REFERENCES[chosen](target, at, sampler or Sampler(), seed, progress)


def is_linear(target: Target, at: Any) -> bool:
    """Whether the outputs at data and inputs are affine in the uncertain parameters, tried on random weights."""
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2, target.numel, generator=source, dtype=torch.float64) * 3.0).unbind()
    for inputs in (target.inputs, at):
        ends = [target.outputs(flat, inputs) for flat in (left, right)]
        scale = max(float(end.abs().max()) for end in ends) + 1e-300
        for share in (0.3, 0.7):
            between = target.outputs(share * left + (1 - share) * right, inputs)
            if float((between - share * ends[0] - (1 - share) * ends[1]).abs().max()) > LINEARITY * scale:
                return False
    return True


def affine_map(target: Target, inputs: Any) -> tuple[Tensor, Tensor]:
    """Offset ``(N, ...)`` and design ``(N, ..., D)`` of outputs that are linear in the parameters, column by column."""
    basis = torch.eye(target.numel, dtype=torch.float64)
    offset = target.outputs(torch.zeros_like(basis[0]), inputs)
    return offset, torch.stack([target.outputs(direction, inputs) - offset for direction in basis], -1)


@torch.no_grad()
def exact(target: Target, at: Any, sampler: Sampler, seed: int, progress: bool) -> Reference:
    """The Gaussian posterior of Bayesian linear regression; its predictions are Gaussian."""
    offset, design = affine_map(target, target.inputs)
    noise = float(target.likelihood.noise)  # type: ignore[attr-defined]
    share = target.ess / target.terms / noise**2
    rows, residual = design.flatten(0, -2), (target.targets - offset).flatten()
    precision = share * rows.T @ rows + target.prior_precision.diag()
    root = torch.linalg.cholesky(precision)
    linear = share * rows.T @ residual + target.prior_precision * target.prior_mean
    centre = torch.cholesky_solve(linear[:, None], root)[:, 0]
    offset, design = affine_map(target, at)
    mean = offset + design @ centre
    half = torch.linalg.solve_triangular(root, design.flatten(0, -2).T, upper=False)
    variance = half.square().sum(0).view(mean.shape)
    widths = {level: NormalDist().inv_cdf(0.5 + 0.5 * level) * variance.sqrt() for level in LEVELS}
    return Reference("exact", mean, variance, {level: (mean - w, mean + w) for level, w in widths.items()})


def _quadrature(target: Target, at: Any, sampler: Sampler, seed: int, progress: bool) -> Reference:
    from vogn.check.quadrature import quadrature

    return quadrature(target, at)


def _nuts(target: Target, at: Any, sampler: Sampler, seed: int, progress: bool) -> Reference:
    from vogn.check.nuts import nuts

    return nuts(target, at, sampler, seed, progress)


REFERENCES: dict[str, Callable[[Target, Any, Sampler, int, bool], Reference]] = {
    "exact": exact,
    "quadrature": _quadrature,
    "nuts": _nuts,
}
"""Name to implementation, the best first."""
