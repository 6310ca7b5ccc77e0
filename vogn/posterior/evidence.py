"""The Laplace approximation of the log marginal likelihood, and the prior precision that maximises it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vogn.capture.selection import matches
from vogn.errors import UnsupportedObservationError
from vogn.posterior.block import PosteriorBlock
from vogn.posterior.gaussian import GaussianPosterior

PRECISIONS = (1e-8, 1e8)
"""Smallest and largest prior precision that :func:`tune_prior_precision` chooses."""


def log_evidence(
    posterior: GaussianPosterior,
    log_likelihood: Tensor | float,
    *,
    prior_precision: Tensor | float | None = None,
    data_scale: Tensor | float = 1.0,
) -> Tensor:
    """``log p(data) ~ log p(data | m) + log N(m; 0, I / delta) + D/2 log 2 pi - 1/2 log det(scale ess C + delta I)``.

    Differentiable in every tensor that is given, to first order; exact for a linear network with Gaussian noise at its
    optimum. The mean ``m`` and the curvature ``C`` are constants, so that gradients are those of the usual two-level
    optimisation.

    Args:
        posterior: at temperature 1: ``ess`` is the number of loss terms.
        log_likelihood: ``log p(data | m)`` in nats, summed over all data, with all constants.
        prior_precision: ``delta`` > 0, a number or one per sampled block ``(blocks,)``, in their order; ``None``: what
            the posterior has.
        data_scale: what the data's part of the precision is multiplied with, > 0: for Gaussian noise ``s`` of a
            curvature that was measured with noise ``s0``, ``(s0 / s)^2``; for a temperature ``1 / T``.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: if the posterior is a point mass, a precision is not positive, or there are not as many as blocks.
        UnsupportedObservationError: if a structure has no determinant or does not add its shift to the curvature
            (``damping="factored"``).

    Example: a linear model, whose evidence is exact.
        >>> import torch, vogn
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)  # the optimum of targets that are zero
        >>> x, y = torch.ones(3, 1), torch.zeros(3, 1)
        >>> likelihood = vogn.likelihoods.Gaussian(noise=1.0)
        >>> posterior = vogn.laplace(model, likelihood, [(x, y)], structure="dense", prior_precision=2.0)
        >>> log_likelihood = -3 * likelihood(model(x), y)
        >>> marginal = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + torch.ones(3, 3) / 2)
        >>> torch.allclose(vogn.log_evidence(posterior, log_likelihood), marginal.log_prob(torch.zeros(3)))
        True

    Source: MacKay (1992), "A Practical Bayesian Framework for Backpropagation Networks", section 4; Immer et al.
    (2021), "Scalable Marginal Likelihood Estimation for Model Selection in Deep Learning", eq. 4.
    """
    blocks = _checked(posterior)
    means = posterior.mean()
    total = log_likelihood if isinstance(log_likelihood, Tensor) else torch.tensor(log_likelihood, dtype=torch.float64)
    precisions = _precisions(blocks, prior_precision)
    for block, delta in zip(blocks, precisions, strict=True):
        mean = block.layout.pack(block.layout.without_constants(means))
        delta = delta.to(mean)
        scale = torch.as_tensor(data_scale).to(mean)
        logdet = _LogDeterminant.apply(delta, scale, block)
        part = 0.5 * (block.numel * delta.log() - delta * mean.square().sum() - logdet)
        total = total + part.to(total)
    return total


def with_prior_precision(posterior: GaussianPosterior, precision: float | Mapping[str, float]) -> GaussianPosterior:
    """The same data under another prior ``N(0, I / precision)``; the mean stays where it is.

    Args:
        posterior: any.
        precision: > 0, one number, or a mapping from name patterns (``"head"``, ``"encoder.*"``, as in ``structure``)
            to numbers: the first that matches a parameter of a block decides, other blocks keep theirs.

    Raises:
        ValueError: if a number is not positive and finite, or a pattern matches no sampled block.
    """
    chosen = dict(precision) if isinstance(precision, Mapping) else {"*": precision}
    for given in chosen.values():
        number = float(given.detach()) if isinstance(given, Tensor) else given
        if not (number > 0 and math.isfinite(number)):
            raise ValueError(f"a prior precision must be a positive finite number, got {number}")
    unused, blocks = set(chosen), []
    for block in posterior.blocks:
        keys = [key for key in chosen if matches(key, block.layout.names)]
        if block.sampled and keys:
            unused.discard(keys[0])
            block = replace(block, shift=chosen[keys[0]] / block.ess)
        blocks.append(block)
    if unused:
        names = ", ".join(block.name for block in posterior.sampled_blocks)
        raise ValueError(f"no sampled block matches {', '.join(map(repr, sorted(unused)))}; there are {names}")
    return GaussianPosterior(blocks, posterior.mean(), likelihood=posterior.likelihood, method=posterior.method)


def tune_prior_precision(
    posterior: GaussianPosterior, per: Literal["block", "all"] = "block"
) -> GaussianPosterior:
    """The same posterior under the prior precision that maximises its :func:`log_evidence`.

    The likelihood does not depend on the prior once the mean is fixed, so that no data are needed. The maximum is
    where ``gamma(delta) = delta |m|^2`` with the effective number of parameters ``gamma = D - delta tr Lambda^-1``: the
    left side falls, the right side rises, and bisection finds the one crossing.

    Args:
        posterior: any with a determinant.
        per: ``"block"``: one precision for every block; ``"all"``: one for all of them.

    Returns:
        A new posterior; precisions stay between 1e-8 and 1e8.

    Raises:
        ValueError: if ``per`` is unknown or the posterior a point mass.
        UnsupportedObservationError: see :func:`log_evidence`.

    Source: MacKay (1992), "Bayesian Interpolation", eq. 4.9 (the stationary point).
    """
    if per not in ("block", "all"):
        raise ValueError(f"per={per!r}: choose 'block' or 'all'")
    blocks, means = _checked(posterior), posterior.mean()
    groups = [[block] for block in blocks] if per == "block" else [list(blocks)]
    found: dict[str, float] = {}
    for group in groups:
        best = precision_at(group, means)
        found |= {block.name: best for block in group}
    tuned = [
        replace(block, shift=found[block.name] / block.ess) if block.name in found else block
        for block in posterior.blocks
    ]
    return GaussianPosterior(tuned, means, likelihood=posterior.likelihood, method=posterior.method)


def precision_at(blocks: Sequence[PosteriorBlock], means: Mapping[str, Tensor], **options: Any) -> float:
    """The :func:`stationary_precision` that blocks share at their own means.

    Args:
        blocks: of one posterior.
        means: that posterior's.
        **options: ``bounds`` and ``halvings``.
    """
    weights = [block.layout.pack(block.layout.without_constants(means)) for block in blocks]
    length = sum(float(weight.double().square().sum()) for weight in weights)
    return stationary_precision(blocks, length, **options)


def stationary_precision(
    blocks: Sequence[PosteriorBlock],
    length: float,
    *,
    bounds: tuple[float, float] = PRECISIONS,
    halvings: int = 50,
) -> float:
    """The precision that blocks share, where ``D - delta tr (ess (C (+) delta / ess))^-1 = delta length``.

    Args:
        blocks: with ``inverse_diagonal``; their own shifts are not read.
        length: ``|m|^2`` of all of them together.
        bounds: what is returned lies between them.
        halvings: of the interval of ``log delta`` between the bounds.
    """
    size = sum(block.numel for block in blocks)

    def slope(log_delta: float) -> float:
        delta = math.exp(log_delta)
        trace = sum(float(_trace(block, delta / block.ess)) / block.ess for block in blocks)
        return size - delta * trace - delta * length

    low, high = (math.log(bound) for bound in bounds)
    if slope(low) <= 0:
        return bounds[0]
    if slope(high) >= 0:
        return bounds[1]
    for _ in range(halvings):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.exp(0.5 * (low + high))


def _trace(block: PosteriorBlock, shift: float) -> Tensor:
    """``tr (C + shift I)^-1``."""
    return block.structure.inverse_diagonal(block.state, shift).sum()


class _LogDeterminant(torch.autograd.Function):
    """``log det(scale ess C + delta I)`` of one block."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, scale: Tensor, block: PosteriorBlock) -> Tensor:
        amount = float(scale) * block.ess
        if not (float(delta) > 0 and amount > 0):
            raise ValueError(f"prior precision and data scale must be positive, got {float(delta)} and {float(scale)}")
        shift = float(delta) / amount
        ctx.save_for_backward(delta, scale, _trace(block, shift).to(delta) / amount)
        ctx.size = block.numel
        return block.structure.logdet(block.state, shift).to(delta) + block.numel * math.log(amount)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        delta, scale, trace = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * trace, gradient * (ctx.size - delta * trace) / scale, None


def _checked(posterior: GaussianPosterior) -> tuple[PosteriorBlock, ...]:
    """The sampled blocks, all of which have a determinant."""
    if not posterior.sampled_blocks:
        raise ValueError("this posterior is a point mass: it has no evidence")
    for block in posterior.sampled_blocks:
        missing = {"logdet", "inverse_diagonal"} - block.structure.SUPPORTS
        if missing or getattr(block.structure, "damping", "exact") != "exact":
            what = f"has no {', '.join(sorted(missing))}" if missing else "does not add its shift to the curvature"
            raise UnsupportedObservationError(
                f"block {block.name!r}: {type(block.structure).__name__} {what}, so that its evidence is not known; "
                "use vogn.laplace, or damping='exact' (KFAC(factored=False))"
            )
    return posterior.sampled_blocks


def _precisions(blocks: Sequence[PosteriorBlock], given: Tensor | float | None) -> list[Tensor]:
    """One scalar per block."""
    if given is None:
        return [torch.tensor(block.shift * block.ess, dtype=torch.float64) for block in blocks]
    if not isinstance(given, Tensor):
        return [torch.tensor(float(given), dtype=torch.float64)] * len(blocks)
    if given.ndim == 0:
        return [given] * len(blocks)
    if given.shape != (len(blocks),):
        shape = tuple(given.shape)
        raise ValueError(f"prior_precision has shape {shape}; give a scalar, or one for each of {len(blocks)} blocks")
    return list(given.unbind())
