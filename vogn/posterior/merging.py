"""Merging Gaussian posteriors that share a base, and taking data away again.

Posteriors ``q_t`` of different data that began from one base ``p`` (a prior, or the posterior of a pretrained network)
multiply to the posterior of all data: ``q ~ p prod_t (q_t / p)^(a_t)``. Precisions and precision-weighted means add::

    Lambda   = Lambda_0 + sum_t a_t (Lambda_t - Lambda_0)
    Lambda m = Lambda_0 m_0 + sum_t a_t (Lambda_t m_t - Lambda_0 m_0)

This is exact where every log-likelihood is quadratic (linear models with Gaussian noise and dense curvature); elsewhere
it is as good as the quadratic approximations are where the means differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, in_block
from vogn.posterior.block import PosteriorBlock, exactly_damped
from vogn.posterior.ensemble import check_same_parameters
from vogn.posterior.gaussian import GaussianPosterior
from vogn.posterior.precision_sums import Term, sum_of_terms
from vogn.posterior.prior import Prior


def merge(
    posteriors: Sequence[GaussianPosterior],
    base: Prior | GaussianPosterior | None = None,
    *,
    weights: Sequence[float] | None = None,
    includes_base: bool | Sequence[bool] = True,
) -> GaussianPosterior:
    """The product of posteriors over what they share: ``q ~ base * prod_t (q_t / base)^(a_t)``.

    Diagonal and dense blocks are merged exactly. A sum of Kronecker products is no Kronecker product: such a block gets
    the exact *mean*, by conjugate gradients on the sum, and the *covariance* of the nearest Kronecker product
    (:func:`vogn.linalg.nearest_kronecker.nearest_kronecker`) plus the exact prior; both are exact if the blocks share
    one of their factors up to a multiple. Where data are taken away, eigenvalues of the nearest product that would be
    negative become zero; whether the sum itself is positive definite is then seen only by the conjugate gradients.
    Factored damping (:class:`vogn.KFAC`'s default) is read as the sum of curvature and prior that it stands for. Point
    masses (norm parameters of some methods) are averaged over the posteriors of positive weight. Running statistics of
    batch norm are no weights: see :func:`vogn.update_batchnorm`.

    Args:
        posteriors: at least one, with the same parameters, blocks and structures (diagonal, dense or Kronecker).
        base: what all of them began from. ``None``: the prior ``N(0, I / (ess * weight_decay))`` that they have in
            common.
        weights: ``a_t``, finite; ``None`` is 1 for each: the posterior of all data. A weight of -1 takes data away.
        includes_base: whether a posterior's precision contains that of the base (one answer, or one for each).
            ``False``: its curvature is that of its own data alone, as :func:`vogn.laplace` measures it on the loader of
            a task; the base's precision, measured once, is then added in place of its prior. Choose it where the base
            is a posterior: its curvature at the weights of a task is another one than at its own.

    Returns:
        The posterior; its ``ess`` is the weighted sum of theirs and the base's.

    Raises:
        ValueError: if the posteriors or the base do not fit each other, the weights do not fit, nothing remains, or
            ``base=None`` and the priors differ.
        UnsupportedObservationError: naming the block, for another structure.
        NotPositiveDefiniteError: naming the block, if more is taken away than there is.

    Example: two halves of the data of a linear model make the posterior of all.
        >>> import torch, vogn
        >>> from vogn.posterior import merge
        >>> model, likelihood = torch.nn.Linear(1, 1, bias=False).double(), vogn.likelihoods.Gaussian(noise=1.0)
        >>> def posterior(x, y):
        ...     with torch.no_grad():
        ...         _ = model.weight.fill_((x * y).sum() / (x.square().sum() + 1.0))
        ...     return vogn.laplace(model, likelihood, [(x, y)], structure="dense", prior_precision=1.0)
        >>> x = torch.tensor([[1.0], [2.0], [-1.0], [3.0]]).double()
        >>> y = 0.5 * x + 0.1
        >>> together, merged = posterior(x, y), merge([posterior(x[:2], y[:2]), posterior(x[2:], y[2:])])
        >>> torch.allclose(merged.mean()["weight"], together.mean()["weight"])
        True

    Source: Daheim, Möllenhoff, Ponti, Gurevych, Khan (2024), "Model Merging by Uncertainty-Based Gradient Matching",
    with the mean in its exact form; Matena and Raffel (2022), "Merging Models with Fisher-Weighted Averaging".
    """
    posteriors = list(posteriors)
    chosen = _checked_weights(len(posteriors), weights)
    first = posteriors[0]
    for k, other in enumerate(posteriors[1:], start=1):
        _check_fits(f"posterior {k}", other, first)
    if isinstance(base, GaussianPosterior):
        _check_fits("the base", base, first)
    means = [posterior.mean() for posterior in posteriors]
    centre = _means_of_base(base, means[0])
    includes = [includes_base] * len(chosen) if isinstance(includes_base, bool) else list(includes_base)
    if len(includes) != len(chosen):
        raise ValueError(f"includes_base has {len(includes)} answers for {len(chosen)} posteriors; give one for each")
    merged = _averages(means, chosen)
    blocks = []
    for k, block in enumerate(first.blocks):
        if not block.sampled:
            blocks.append(block)
            continue
        found = [posterior.blocks[k] for posterior in posteriors]
        with in_block(block.name):
            start = _base_term(base, k, found, centre)
            terms = [replace(start, weight=1.0 - sum(chosen))]
            for each, mean, weight, whole in zip(found, means, chosen, includes, strict=True):
                terms += _terms(each, mean, weight, start, whole)
            new, vector = _merged_block(block, terms)
        blocks.append(new)
        merged |= block.layout.unpack(vector)
        for name, place in block.layout.constants:
            merged[name][place] = means[0][name][place]
    return GaussianPosterior(blocks, merged, likelihood=first.likelihood, method="merge")


def unlearn(
    posterior: GaussianPosterior,
    part: GaussianPosterior,
    base: Prior | GaussianPosterior | None = None,
    *,
    includes_base: bool = True,
) -> GaussianPosterior:
    """The posterior without some of its data: ``q base / q_part``. Undoes :func:`merge`.

    Args:
        posterior: of all data.
        part: of the data that shall be forgotten, from the same base.
        base: see :func:`merge`.
        includes_base: of the part, see :func:`merge`.

    Raises:
        ValueError, UnsupportedObservationError, NotPositiveDefiniteError: see :func:`merge`.
    """
    return merge([posterior, part], base, weights=[1.0, -1.0], includes_base=[True, includes_base])


def task_arithmetic(
    weights: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor], scale: float | Sequence[float] = 1.0
) -> dict[str, Tensor]:
    """``theta_0 + sum_t a_t (theta_t - theta_0)``: :func:`merge` with the same metric everywhere.

    It is what merging does where all posteriors have the base's precision, that is, where nothing says which weights
    matter to which task. ``scale = 1 / T`` is the average of the weights.

    Args:
        weights: ``{name: shape}`` of every task, at least one.
        base: ``{name: shape}`` from which they began.
        scale: ``a_t``, one number for all or one for each.

    Raises:
        ValueError: if names, shapes or numbers do not fit.

    Source: Ilharco et al. (2023), "Editing Models with Task Arithmetic", section 2.
    """
    factors = [float(scale)] * len(weights) if isinstance(scale, (int, float)) else scale
    factors = _checked_weights(len(weights), factors, positive=False)
    for k, other in enumerate(weights):
        check_same_parameters(f"task {k}", other, "the base", base)
    out = {name: tensor.detach().clone() for name, tensor in base.items()}
    for factor, other in zip(factors, weights, strict=True):
        for name, start in base.items():
            out[name] += factor * (other[name].detach().to(start) - start.detach())
    return out


def _checked_weights(count: int, weights: Sequence[float] | None, *, positive: bool = True) -> list[float]:
    if count == 0:
        raise ValueError("there is nothing to merge: give at least one")
    chosen = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(chosen) != count:
        raise ValueError(f"{len(chosen)} weights for {count} posteriors; give one for each")
    if not all(map(math.isfinite, chosen)):
        raise ValueError(f"weights={chosen} must be finite")
    if positive and not any(weight > 0 for weight in chosen):
        raise ValueError(f"weights={chosen}: at least one must be positive")
    return chosen


def _check_fits(name: str, other: GaussianPosterior, first: GaussianPosterior) -> None:
    check_same_parameters(name, other.mean(), "posterior 0", first.mean())
    ours = [(block.name, block.layout, block.sampled, type(block.structure)) for block in first.blocks]
    theirs = [(block.name, block.layout, block.sampled, type(block.structure)) for block in other.blocks]
    if ours != theirs:
        raise ValueError(
            f"{name} has other blocks or structures than posterior 0: train all with the same method and partition"
        )


def _averages(means: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """What point masses become."""
    positive = [(weight, mean) for weight, mean in zip(weights, means, strict=True) if weight > 0]
    total = sum(weight for weight, _ in positive)
    return {
        name: torch.stack([weight / total * mean[name] for weight, mean in positive]).sum(0)
        for name in means[0]
    }


def _means_of_base(base: Prior | GaussianPosterior | None, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(base, GaussianPosterior):
        return {name: mean.to(like[name]) for name, mean in base.mean().items()}
    return (base or Prior()).mean_like(like)


def _base_term(
    base: Prior | GaussianPosterior | None, k: int, found: Sequence[PosteriorBlock], centre: Mapping[str, Tensor]
) -> Term:
    """The base, to the power one."""
    if isinstance(base, GaussianPosterior):
        block = exactly_damped(base.blocks[k])
        return Term(1.0, block, block.ess * block.shift, block.layout.pack(centre))
    precisions = [block.ess * block.shift for block in found]
    if base is None and max(precisions) - min(precisions) > 1e-5 * max(precisions):
        raise ValueError(
            f"block {found[0].name!r}: the posteriors have different priors, of precisions "
            f"{', '.join(f'{p:g}' for p in precisions)}; pass base=vogn.Prior(precision=...)"
        )
    return Term(1.0, None, precisions[0] if base is None else base.precision, found[0].layout.pack(centre))


def _terms(block: PosteriorBlock, means: Mapping[str, Tensor], weight: float, base: Term, whole: bool) -> list[Term]:
    """A posterior as it is; or the curvature of its own data, and the base's precision, both at its mean."""
    block, mean = exactly_damped(block), block.layout.pack(means)
    if whole:
        return [Term(weight, block, block.ess * block.shift, mean)]
    own = replace(block, shift=0.0, sampled=False)  # which need not have an inverse
    return [Term(weight, own, 0.0, mean), replace(base, weight=weight, mean=mean)]


def _merged_block(block: PosteriorBlock, terms: Sequence[Term]) -> tuple[PosteriorBlock, Tensor]:
    """The block with the summed precision, and its mean."""
    ess = math.fsum(term.weight * term.block.ess for term in terms if term.block is not None)
    precision = math.fsum(term.weight * term.shift for term in terms)
    if not ess > 0:
        raise ValueError(f"block {block.name!r}: the effective sample sizes add up to {ess:g}: nothing remains")
    if precision < -1e-9 * max(abs(term.weight) * term.shift for term in terms):
        raise NotPositiveDefiniteError(
            f"the prior's precision becomes {precision:g}; pass the base that the posteriors really began from"
        )
    total = sum_of_terms(terms, ess)
    new = replace(exactly_damped(block), state=total.state, ess=ess, shift=max(precision, 0.0) / ess)
    with_mean = torch.stack([term.weight * term.precision_product(term.mean) for term in terms]).sum(0)
    return new, total.solve(new, with_mean)
