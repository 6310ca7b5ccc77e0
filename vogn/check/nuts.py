"""Hamiltonian Monte Carlo over all uncertain parameters, by Pyro."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vogn.check.reference import LEVELS, Reference, Sampler
from vogn.check.statistics import pearson
from vogn.check.target import Target
from vogn.predict.evaluation import seeded


def nuts(target: Target, at: Any, sampler: Sampler, seed: int, progress: bool) -> Reference:
    """Predictions of draws from the posterior.

    The sampler works on ``sqrt(prior precision) (theta - prior mean)``. Every chain starts at a point of its own, a
    draw from the prior that is no wider than a standard deviation of 1 per parameter. R-hat and effective sample size
    are those of predictions: the weights of a network may be permuted without a change of the function.

    Raises:
        ValueError: if there are more parameters than ``sampler.max_parameters``.

    Source: Hoffman, Gelman (2014), "The No-U-Turn Sampler"; Gelman et al. (2013), "Bayesian Data Analysis", section
    11.4, for split R-hat.
    """
    if target.numel > sampler.max_parameters:
        raise ValueError(
            f"{target.numel} uncertain parameters are more than NUTS is meant for here (max_parameters="
            f"{sampler.max_parameters}): check a narrower network or a posterior over fewer layers, or raise the limit "
            f"with sampler=vogn.check.Sampler(max_parameters={target.numel}) and expect hours"
        )
    chains, divergences = [], 0
    for chain in range(sampler.chains):
        with seeded(1000 * seed + chain):
            weights, found = _chain(target, sampler, progress)
        chains.append(weights)
        divergences += found
    with torch.no_grad():
        outputs = torch.stack([torch.stack([target.outputs(flat, at) for flat in chain]) for chain in chains])
        samples = target.observed(outputs.flatten(0, 1))
    by_chain = samples.view(sampler.chains, sampler.draws, len(samples[0]), -1)
    variances = by_chain.var(1, correction=0)
    r_hat, effective = _convergence(by_chain)
    ends = [(0.5 - 0.5 * level, 0.5 + 0.5 * level) for level in LEVELS]
    intervals = {
        level: (torch.quantile(samples, low, 0), torch.quantile(samples, high, 0))
        for level, (low, high) in zip(LEVELS, ends, strict=True)
    }
    return Reference(
        "nuts",
        samples.mean(0),
        samples.var(0, correction=0),
        intervals,
        r_hat=r_hat,
        effective_samples=effective,
        divergences=divergences,
        draws=sampler.chains * sampler.draws,
        ceiling=float(pearson(variances[0], variances[-1])) if sampler.chains > 1 else None,
    )


def _convergence(by_chain: Tensor) -> tuple[float, float]:
    """Largest split R-hat and smallest effective sample size of ``(chains, draws, N, M)``.

    Predictions that never change have neither; if none changes the sampler is stuck: NaN and 0.
    """
    from pyro.ops.stats import effective_sample_size, split_gelman_rubin

    spread = by_chain.var((0, 1))
    if not float(spread.max()) > 0:
        return float("nan"), 0.0
    moving = by_chain[:, :, spread > 1e-24 * float(spread.max())]
    return float(split_gelman_rubin(moving).max()), float(effective_sample_size(moving).min())


def _chain(target: Target, sampler: Sampler, progress: bool) -> tuple[Tensor, int]:
    """Draws ``(draws, D)`` of one chain, and how many transitions diverged."""
    from pyro.infer import MCMC, NUTS

    scale = target.prior_precision.rsqrt()

    def potential(state: dict[str, Tensor]) -> Tensor:
        return target.energy(target.prior_mean + scale * state["z"])

    start = torch.randn_like(scale) * (1.0 / scale).clamp_max(1.0)
    kernel = NUTS(
        potential_fn=potential, target_accept_prob=sampler.target_accept, max_tree_depth=sampler.tree_depth
    )
    run = MCMC(
        kernel,
        num_samples=sampler.draws,
        warmup_steps=sampler.warmup,
        initial_params={"z": start},
        disable_progbar=not progress,
    )
    run.run()
    diverged = sum(len(steps) for steps in run.diagnostics()["divergences"].values())
    return target.prior_mean + scale * run.get_samples()["z"], diverged
