"""The methods, and how many networks of one are trained and predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vogn
from benchmarks.uci.data import Part, batches, stacked
from benchmarks.uci.networks import ManyNetworks
from vogn.likelihoods import Gaussian

NOISE_FLOOR = 0.01
"""Smallest noise, in standard deviations of the targets."""
SAMPLES = 100
HIDDEN = 50


@dataclass(frozen=True)
class Method:
    """A row.

    Args:
        build: from networks, number of training rows and learning rate to the optimizer.
        rates: learning rates of the grid.
        noises: standard deviations of the noise in the grid, for methods that do not learn it.
        prediction: options of :func:`vogn.predict`; empty for the network at the mean.
        members: networks that are averaged.
    """

    build: Callable[[ManyNetworks, int, float], Any]
    rates: tuple[float, ...]
    prediction: Mapping[str, Any]
    members: int = 1
    noises: tuple[float, ...] = ()

    @property
    def learns_noise(self) -> bool:
        """Whether the noise is learned in training; else it is chosen on held-out rows."""
        return self.bayesian and not self.noises

    @property
    def bayesian(self) -> bool:
        """Whether predictions average over weights."""
        return bool(self.prediction)


def _natural(name: str, variational: bool = True, **options: Any) -> Callable[[ManyNetworks, int, float], Any]:
    def build(model: ManyNetworks, n: int, lr: float) -> Any:
        return vogn.METHODS[name].build(
            model, lr=lr, ess=float(n), weight_decay=1.0 / n, variational=variational, **options
        )

    return build


def _adamw(model: ManyNetworks, n: int, lr: float) -> torch.optim.Optimizer:
    # its weight decay pulls by lr * decay whatever the gradient's size: here as strong as the prior's at unit noise
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1.0 / n)


_KRONECKER: dict[str, Any] = {"kl_clip": None, "refresh_every": 10, "damping": 0.01}
_NARROW: dict[str, Any] = {"initial_curvature": 1.0, "curvature_decay": 0.999}
"""The posterior begins narrow and widens within the first half of the run; "first batch" is the other way, the default
of these methods: the curvature of the first batch, which is small, so that the posterior begins wide."""
_MC = {"method": "mc", "samples": SAMPLES}
METHODS: dict[str, Method] = {
    "noisy K-FAC": Method(_natural("kfac", **_KRONECKER, **_NARROW), (0.1, 0.3), _MC),
    "noisy K-FAC, first batch": Method(_natural("kfac", **_KRONECKER), (0.03, 0.1), _MC),
    "noisy EK-FAC": Method(_natural("ekfac", **_KRONECKER, **_NARROW), (0.1, 0.3), _MC),
    "noisy EK-FAC, first batch": Method(_natural("ekfac", **_KRONECKER), (0.03, 0.1), _MC),
    "VOGN": Method(_natural("vogn", fisher="mc", damping=0.01, **_NARROW), (0.03, 0.1), _MC),
    "VOGN, first batch": Method(_natural("vogn", fisher="mc", damping=0.01), (0.03, 0.1), _MC),
    "IVON": Method(_natural("ivon", **_NARROW), (0.03, 0.1), _MC),
    "Laplace": Method(
        _natural("kfac", variational=False, **_KRONECKER),
        (0.03,),
        {"method": "linearized", "link": "mc", "samples": SAMPLES},
        noises=(0.15, 0.4),
    ),
    "AdamW": Method(_adamw, (0.01, 0.03), {}),
    "AdamW, 5 networks": Method(_adamw, (0.01, 0.03), {}, members=5),
}


@dataclass(frozen=True)
class Task:
    """One network of a program.

    Args:
        train, held: rows.
        prior: precision of the prior.
        noise: to begin with.
    """

    train: Part
    held: Part
    prior: float
    noise: float = 0.5


def run(
    method: Method, tasks: list[Task], lr: float, steps: int, batch: int, seed: int
) -> list[dict[str, Tensor]]:
    """Train a network for every task, all together, and predict.

    Returns:
        For every task ``outputs (S, n)``, in standard deviations of the targets, and ``noise``.
    """
    x, y = stacked([task.train for task in tasks])
    torch.manual_seed(seed)
    model = ManyNetworks(x.shape[-1], torch.tensor([task.prior for task in tasks]), HIDDEN)
    model.noise.copy_(torch.tensor([task.noise for task in tasks]))
    optimizer = method.build(model, len(x), lr)
    likelihood = Gaussian(noise=1.0)
    natural = isinstance(optimizer, vogn.NaturalGradient)
    average: Tensor | None = None
    for step, (inputs, targets) in enumerate(batches(x, y, batch, steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 2.0 * (1.0 - step / steps)) * min(1.0, (step + 1) / (0.05 * steps))
        optimizer.zero_grad()
        if natural:
            with optimizer.sampled_params():
                outputs = model(inputs)
                likelihood(outputs, targets / model.noise).backward()
        else:
            outputs = model(inputs) * model.noise
            (outputs - targets).square().mean(0).mul(0.5).sum().backward()
            outputs = outputs / model.noise
        optimizer.step()
        with torch.no_grad():
            seen = (outputs * model.noise - targets).square().mean(0)
            average = seen if average is None else average.lerp(seen, 0.02)
            if method.learns_noise and step >= steps // 10:
                model.noise.copy_(average.sqrt().clamp_min(NOISE_FLOOR))
    held, _ = stacked([task.held for task in tasks])
    return _predict(method, model, optimizer, likelihood, held, seed)


@torch.no_grad()
def _predict(
    method: Method, model: ManyNetworks, optimizer: Any, likelihood: Gaussian, x: Tensor, seed: int
) -> list[dict[str, Tensor]]:
    if method.bayesian:
        found = vogn.predict(
            model, optimizer.posterior(), x, likelihood=likelihood, batch_size=1000, seed=seed, **method.prediction
        )
        assert found.samples is not None
        outputs = found.samples * model.noise
    else:
        outputs = (model(x) * model.noise).unsqueeze(0)
    return [{"outputs": outputs[:, :, r], "noise": model.noise[r]} for r in range(outputs.shape[2])]


def pooled(method: Method, found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The members of an ensemble as samples of one prediction; members stand next to each other."""
    k = method.members
    groups = [found[start : start + k] for start in range(0, len(found), k)]
    return [{"outputs": torch.cat([m["outputs"] for m in group]), "noise": group[0]["noise"]} for group in groups]


def best_noise(outputs: Tensor, y: Tensor) -> float:
    """The noise with the highest log-likelihood of the targets, on a grid of 5 % steps."""
    grid = [NOISE_FLOOR * 1.05**k for k in range(110)]
    return max(grid, key=lambda noise: log_likelihood(outputs, y, noise))


def log_likelihood(outputs: Tensor, y: Tensor, noise: float | Tensor) -> float:
    """Mean log density of the targets under the mixture over samples, in standard deviations of the targets.

    Args:
        outputs: ``(S, n)``.
        y: ``(n,)``.
        noise: one standard deviation, or one for every sample, ``(S, 1)``.
    """
    terms = torch.distributions.Normal(outputs.double(), noise).log_prob(y.double())
    return float((terms.logsumexp(0) - math.log(len(outputs))).mean())


def tested(number: int, outputs: Tensor, noise: float | Tensor, held: Part) -> dict[str, float]:
    """What a cell keeps of a split: test figures in the units of the targets.

    Args:
        number: of the split.
        outputs, noise: see :func:`log_likelihood`.
        held: the test part; rows beyond the outputs' are left out.
    """
    y = held.y[: outputs.shape[1]]
    return {
        "split": number,
        "noise": float(torch.as_tensor(noise).mean()) * held.scale,
        "rmse": float((outputs.mean(0) - y).square().mean().sqrt()) * held.scale,
        "log_likelihood": log_likelihood(outputs, y, noise) - math.log(held.scale),
        "tested": len(y),
    }
