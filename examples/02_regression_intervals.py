"""Do credible intervals of a Bayesian regression cover the truth as often as they say?

First a linear model, where the posterior is known in closed form: one full-batch step of VON with a dense matrix lands
on it exactly, and its 90 % intervals are checked on many simulated data sets. Then a small network on a wave, whose
intervals widen where there are no data; the flag is flipped twice on the way.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import vogn
from vogn import plots
from vogn.likelihoods import Gaussian
from vogn.models import mlp

NOISE = 0.5
PRIOR_PRECISION = 1.0
Z90 = 1.6449  # half-width of a central 90 % interval of the standard normal


def linear_posterior(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the weights after one step from zero."""
    model = torch.nn.Linear(x.shape[1], 1, bias=False, dtype=x.dtype)
    torch.nn.init.zeros_(model.weight)
    likelihood = Gaussian(noise=NOISE)
    opt = vogn.VON(
        model,
        lr=1.0,
        ess=len(x),
        weight_decay=PRIOR_PRECISION / len(x),
        structure="dense",
        curvature_decay=0.0,
        variational=False,  # the curvature of a linear model is the same at every weight: no noise is needed
    )
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    posterior = opt.posterior()
    return posterior.mean()["weight"].flatten(), posterior.variance()["weight"].flatten().sqrt()


def linear_coverage(repetitions: int = 200, features: int = 5, examples: int = 30) -> None:
    """Draw weights from the prior and data from the weights; count how often the intervals hold the weights."""
    generator = torch.Generator().manual_seed(0)
    hits = []
    for _ in range(repetitions):
        truth = torch.randn(features, generator=generator, dtype=torch.float64) / PRIOR_PRECISION**0.5
        x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
        y = x @ truth[:, None] + NOISE * torch.randn(examples, 1, generator=generator, dtype=torch.float64)
        mean, std = linear_posterior(x, y)
        exact = torch.linalg.solve(x.T @ x / NOISE**2 + PRIOR_PRECISION * torch.eye(features), x.T @ y / NOISE**2)
        assert torch.allclose(mean, exact.flatten(), atol=1e-9)
        hits.append(((truth - mean).abs() < Z90 * std).double())
    covered = torch.cat(hits)
    error = (covered.var() / len(covered)).sqrt()
    print(f"linear model: 90 % intervals cover {100 * covered.mean():.1f} % +- {100 * error:.1f} % of the weights")


def network_intervals(steps: int = 600) -> None:
    """Fit a wave with a full covariance over all weights, in one mode, the other and the first again, and draw each."""
    torch.manual_seed(0)
    x = torch.cat([torch.linspace(-2, -0.5, 40), torch.linspace(0.5, 2, 40)])[:, None]
    y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
    model = mlp((1, 32, 1), activation="tanh")
    likelihood = Gaussian(noise=0.1)
    prior = PRIOR_PRECISION / len(x)
    opt = vogn.VON(model, lr=0.1, ess=len(x), weight_decay=prior, structure="dense", momentum=0.9, damping=0.1)
    places = torch.linspace(-4, 4, 161)[:, None]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, variational in zip(figure.subplots(1, 3, sharey=True), (True, False, True), strict=True):
        for group in opt.param_groups:
            group["variational"] = variational  # the one flag
        for _ in range(steps):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(x), y).backward()
            opt.step()
        # trained with samples, predicted with samples; the Laplace approximation of the twin predicts by linearisation
        method = "mc" if variational else "linearized"
        found = vogn.predict(model, opt.posterior(), places, method=method, samples=500, likelihood=likelihood)
        low, high = found.interval(0.9)
        plots.regression_intervals(places, found.mean, low, high, ax=axes)
        axes.plot(x, y, ".", color="black", markersize=3)
        axes.set_title(f"variational={variational}")
        width = (high - low).flatten()
        inside, outside = width[(places.abs() - 1.25).abs().flatten() < 0.5].mean(), width[[0, -1]].mean()
        print(f"variational={variational!s:5}  width of 90 % intervals: {inside:.2f} at the data, {outside:.2f} at +-4")
        assert outside > 2 * inside, "intervals should widen away from the data"
    figure.savefig("regression_intervals.png", dpi=80)
    print("drawn in regression_intervals.png")


if __name__ == "__main__":
    linear_coverage()
    network_intervals()
