"""Can a network learn the kernel of a Gaussian process without making it overconfident?

A sparse variational Gaussian process (gpytorch) stands on the features of a network. Three optimizers share one
evidence lower bound: gpytorch's natural gradient for the process, Adam for kernel and noise, and ours for the network.
The bound is a mean over examples, and the term of an example sees the features of that example only: the backward pass
of the bound has the rows of an empirical Fisher.

The target depends on two hidden directions in 20 dimensions: a kernel on the inputs does not find them. Features do,
but the bound does not charge for them, and the process becomes too sure of itself. With ``variational=True`` from
half-way on, the network's weights have a posterior too, and predictions average over it.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from time import perf_counter

import gpytorch
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.func import functional_call

import vogn

INPUTS, EXAMPLES, EPOCHS, NOISE = 20, 500, 24, 0.1
ESS = 10 * EXAMPLES  # cold: temperature 0.1

warnings.filterwarnings("ignore", category=DeprecationWarning)


def make_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``sin(2 u) + |v| + noise`` of two hidden directions ``u`` and ``v``."""
    directions = torch.linalg.qr(torch.randn(INPUTS, 2, generator=torch.Generator().manual_seed(0)))[0]
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=source)
    u, v = (x @ directions).unbind(-1)
    return x, (2 * u).sin() + v.abs() - 0.8 + NOISE * torch.randn(count, generator=source)


class SparseProcess(gpytorch.models.ApproximateGP):
    """A process with inducing points, whose variational distribution takes natural gradients."""

    def __init__(self, points: Tensor) -> None:
        variational = gpytorch.variational.NaturalVariationalDistribution(len(points))
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, variational))
        self.mean = gpytorch.means.ConstantMean()
        self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=points.shape[1]))

    def forward(self, z: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean(z), self.kernel(z))


def features() -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


def kfac(network: nn.Module) -> vogn.KFAC:
    options = {"lr": 0.1, "momentum": 0.0, "damping": 0.1, "ess": ESS, "weight_decay": 10 / ESS}
    return vogn.KFAC(network, fisher="empirical", variational=False, **options)


def adam(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=3e-3)


def train(network: nn.Module, opt: torch.optim.Optimizer | None, x: Tensor, y: Tensor, switch: int) -> tuple:
    """The process and its likelihood; ours samples the network's weights from epoch ``switch`` on."""
    process, likelihood = SparseProcess(network(x[:40]).detach()), gpytorch.likelihoods.GaussianLikelihood()
    bound = gpytorch.mlls.VariationalELBO(likelihood, process, num_data=len(x))
    natural = gpytorch.optim.NGD(process.variational_parameters(), num_data=len(x), lr=0.1)
    kernel = torch.optim.Adam([*process.hyperparameters(), *likelihood.parameters()], lr=0.02)
    optimizers = [natural, kernel] if opt is None else [natural, kernel, opt]
    ours = opt if isinstance(opt, vogn.NaturalGradient) else None
    for epoch in range(EPOCHS):
        if ours is not None and epoch == switch:
            ours.param_groups[0]["variational"] = True
        for batch in torch.randperm(len(x)).split(50):
            for each in optimizers:
                each.zero_grad()
            with nullcontext() if ours is None else ours.sampled_params():
                (-bound(process(network(x[batch])), y[batch])).backward()
            for each in optimizers:
                each.step()
    return process.eval(), likelihood.eval()


@torch.no_grad()
def scores(network: nn.Module, posterior: vogn.Posterior, samples: int, fitted: tuple, x: Tensor, y: Tensor) -> tuple:
    """Root mean squared error and negative log density of the mixture over draws of the network's weights."""
    process, likelihood = fitted
    draws = posterior.sample(samples)
    found = []
    for k in range(samples):
        z = functional_call(network, {name: draw[k] for name, draw in draws.items()}, (x,))
        found.append(likelihood(process(z)))
    means, deviations = torch.stack([p.mean for p in found]), torch.stack([p.stddev for p in found])
    log_density = Normal(means, deviations).log_prob(y).logsumexp(0) - torch.tensor(float(samples)).log()
    return (means.mean(0) - y).square().mean().sqrt(), -log_density.mean()


def main() -> None:
    x, y = make_data(EXAMPLES, seed=1)
    test = make_data(1000, seed=2)
    runs = {  # network, its optimizer, epoch of the switch
        "kernel on the inputs": (lambda: nn.Identity(), lambda network: None, EPOCHS),
        "features by Adam": (features, adam, EPOCHS),
        "features by K-FAC": (features, kfac, EPOCHS),
        "K-FAC, then noisy K-FAC": (features, kfac, EPOCHS // 2),
    }
    print(f"true noise {NOISE}\n\n                           RMSE     NLL  learned noise   seconds")
    nll = {}
    for name, (make_network, make_optimizer, switch) in runs.items():
        torch.manual_seed(0)
        begin, network = perf_counter(), make_network()
        opt = make_optimizer(network)
        fitted = train(network, opt, x, y, switch)
        if switch < EPOCHS:
            rmse, nll[name] = scores(network, opt.posterior(), 16, fitted, *test)
        else:
            weights = dict(network.named_parameters()) or {"none": torch.zeros(())}
            rmse, nll[name] = scores(network, vogn.Point(weights), 1, fitted, *test)
        noise = float(fitted[1].noise.detach().sqrt())
        print(f"{name:24s} {rmse:7.3f} {nll[name]:7.3f} {noise:14.3f} {perf_counter() - begin:9.1f}")
    assert nll["K-FAC, then noisy K-FAC"] < nll["features by K-FAC"], "a posterior over the features should help"


if __name__ == "__main__":
    main()
