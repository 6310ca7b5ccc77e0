"""From a Gaussian over the outputs of the linearised network to the distribution of an observation, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vogn.likelihoods import Likelihood
from vogn.likelihoods.base import sum_outputs


class Linked(NamedTuple):
    """``mean`` and ``variance`` ``(N, K)`` and ``aleatoric`` as in :class:`vogn.Predictive`."""

    mean: Tensor
    variance: Tensor
    aleatoric: Tensor


@dataclass(frozen=True)
class Link:
    """One way.

    Args:
        apply: ``(likelihood, mean (N, K) of the outputs, their variance)`` to :class:`Linked`.
        kinds: likelihoods that it is meant for.
        full: whether it reads covariances ``(N, K, K)``; else variances ``(N, K)``.
    """

    apply: Callable[[Likelihood, Tensor, Tensor], Linked]
    kinds: tuple[str, ...]
    full: bool = False


def probit(likelihood: Likelihood, mean: Tensor, variance: Tensor) -> Linked:
    """Logits are shrunk by ``(1 + pi / 8 variance)^(-1/2)``; variance and epistemic part are of first order.

    Source: MacKay (1992), "The Evidence Framework Applied to Classification Networks", eq. 9, for two classes; applied
    to each logit of several classes as in Daxberger et al. (2021), "Laplace Redux".
    """
    shrunk = mean / (1.0 + math.pi / 8.0 * variance).sqrt()
    if likelihood.kind == "bernoulli":
        p, at_mean = torch.sigmoid(shrunk), torch.sigmoid(mean)
        slope = at_mean * (1.0 - at_mean)
        spread, information = slope.square() * variance, sum_outputs(0.5 * slope * variance)
    else:
        p, at_mean = shrunk.softmax(-1), mean.softmax(-1)
        # row k of the Jacobian of softmax is p_k (e_k - p)
        common = (at_mean.square() * variance).sum(-1, keepdim=True)
        spread = at_mean.square() * (variance * (1.0 - 2.0 * at_mean) + common)
        information = 0.5 * (at_mean * (1.0 - at_mean) * variance).sum(-1)
    total = likelihood.uncertainty(p, spread)
    return Linked(p, spread, (total - information).clamp_min(0.0))


def laplace_bridge(likelihood: Likelihood, mean: Tensor, covariance: Tensor) -> Linked:
    """Moments of the Dirichlet distribution that :func:`dirichlet_of` finds. Where the logits' variances are alike
    while their means differ, no Dirichlet fits, and the probabilities are too flat."""
    alpha = dirichlet_of(mean, covariance)
    total = alpha.sum(-1, keepdim=True)
    p = alpha / total
    expected_entropy = (torch.digamma(total + 1.0) - (p * torch.digamma(alpha + 1.0)).sum(-1, keepdim=True)).squeeze(-1)
    return Linked(p, p * (1.0 - p) / (total + 1.0), expected_entropy.clamp_min(0.0))


def exact(likelihood: Likelihood, mean: Tensor, variance: Tensor) -> Linked:
    """Real targets: the outputs' variance plus the noise's."""
    _, noise, _ = likelihood.point(mean)
    return Linked(mean, variance + noise, noise)


LINKS: Mapping[str, Link] = {
    "exact": Link(exact, ("gaussian",)),
    "laplace_bridge": Link(laplace_bridge, ("categorical",), full=True),
    "probit": Link(probit, ("categorical", "bernoulli")),
}
"""Value of ``link=`` to implementation; ``"mc"`` samples instead."""


def dirichlet_of(mean: Tensor, covariance: Tensor, *, normalise: bool = True) -> Tensor:
    """Parameters of a Dirichlet distribution over probabilities whose logits are Gaussian.

    Args:
        mean: ``(N, K)``, of the logits.
        covariance: ``(N, K, K)``, of the logits; only what it says about their differences counts.
        normalise: divide logits and variances by a common factor first, so that large variances do not leave the range
            where the approximation is good (Daxberger et al. 2021, "Laplace Redux", in their code).

    Returns:
        ``(N, K)``, > 0.

    Source: Hobbhahn, Kristiadi, Hennig (2022), "Fast Predictive Uncertainty for Classification with Bayesian Deep
    Networks", eq. 8 and the correction to logits that sum to zero.
    """
    k = mean.shape[-1]
    rows = covariance.sum(-1)
    whole = rows.sum(-1, keepdim=True)
    usable = torch.where(whole > 0, whole, torch.ones_like(whole))
    mu = torch.where(whole > 0, mean - rows * mean.sum(-1, keepdim=True) / usable, mean - mean.mean(-1, keepdim=True))
    variance = covariance.diagonal(dim1=-2, dim2=-1) - torch.where(whole > 0, rows.square() / usable, 0.0)
    variance = variance.clamp_min(torch.finfo(variance.dtype).eps)
    if normalise:
        factor = variance.mean(-1, keepdim=True) / math.sqrt(k / 2.0)
        mu, variance = mu / factor.sqrt(), variance / factor
    summed = torch.logsumexp(-mu, -1, keepdim=True)
    largest = math.log(torch.finfo(mu.dtype).max) - 1.0
    return (1.0 - 2.0 / k + (mu + summed - 2.0 * math.log(k)).clamp_max(largest).exp()) / variance
