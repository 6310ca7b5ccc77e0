"""How much each training example helps or hurts each test example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior import GaussianPosterior
from vogn.sensitivity.perturbation import check_options, checked_targets, find_likelihood, linearised, vectors


def influence(
    model: nn.Module,
    posterior: GaussianPosterior,
    training: tuple[Any, Tensor],
    test: tuple[Any, Tensor],
    *,
    likelihood: Likelihood | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> Tensor:
    """By how much the loss of each test example would rise if a training example were taken out, to first order.

    ``g_test^T Sigma g_train`` with the gradients of both losses at the mean: positive where the training example helps
    the test example, negative where it harms it (a wrong label among its neighbours).

    Args:
        model, likelihood, temperature, batch_size: see :func:`vogn.sensitivity.leave_one_out`.
        posterior: of the training data.
        training: ``(inputs, targets)`` of ``N`` training examples.
        test: ``(inputs, targets)`` of ``M`` others.

    Returns:
        ``(M, N)`` in nats. Memory: ``N D`` numbers for ``D`` sampled parameters.

    Raises:
        ValueError: see :func:`vogn.sensitivity.leave_one_out`.

    Source: Koh and Liang (2017), "Understanding Black-box Predictions via Influence Functions", eq. 2, with the
    posterior's covariance for the inverse Hessian (and the sign of a removal).
    """
    check_options("first", temperature)
    likelihood = find_likelihood(posterior, likelihood)
    ours = _gradients(model, posterior, likelihood, *training, batch_size)
    theirs = _gradients(model, posterior, likelihood, *test, batch_size)
    total: Tensor | None = None
    for block in posterior.sampled_blocks:
        left, right = (
            block.layout.pack({name: found[name] for name in block.layout.names}) for found in (theirs, ours)
        )
        term = left.flatten(1) @ block.covariance_product(right).flatten(1).mT
        total = term if total is None else total + term
    assert total is not None
    return total / temperature


def _gradients(
    model: nn.Module, posterior: GaussianPosterior, likelihood: Likelihood, x: Any, y: Tensor, batch_size: int
) -> dict[str, Tensor]:
    """Gradients of the examples' losses, ``{name: (N, *shape)}``."""
    means, start = posterior.mean(), 0
    parts: list[dict[str, Tensor]] = []
    for outputs, slopes in linearised(model, posterior, x, batch_size):
        targets = y[start : start + len(outputs)]
        f, targets = checked_targets(likelihood, outputs, targets)
        residual = vectors(likelihood.score(f, targets))
        parts.append(
            {name: torch.einsum("nk,nk...->n...", residual.to(s), s).to(means[name]) for name, s in slopes.items()}
        )
        start += len(outputs)
    if start != len(y):
        raise ValueError(f"there are {start} inputs but {len(y)} targets")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
