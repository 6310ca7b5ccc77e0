"""What the outputs of a student mean, and how far they are from a teacher's predictive distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.predict import Predictive

Targets = dict[str, Tensor]
"""What a student learns about every example."""

TINY = 1e-6
"""Smallest epistemic share, and smallest epistemic variance over that of the noise."""


class Head(ABC):
    """The meaning of a student's outputs."""

    @abstractmethod
    def outputs(self, teacher: Predictive) -> int:
        """How many outputs the student needs."""

    @abstractmethod
    def targets(self, teacher: Predictive) -> Targets:
        """What of the teacher is learned, example by example."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Mean distance from the teacher, a scalar in nats; zero where nothing is left to learn."""

    @abstractmethod
    def predictive(self, outputs: Tensor) -> Predictive:
        """The student's predictive distribution."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain description."""


@dataclass(frozen=True)
class DirichletHead(Head):
    """Classes: ``K`` logits of the mean probabilities and one of the *epistemic share* ``rho``.

    The variance of the one-hot label splits into ``E[p (1 - p)] + Var[p]``; summed over the classes, ``rho`` is the
    share of the second part. With the mean it determines a Dirichlet distribution of the probabilities, of
    concentration ``1 / rho - 1``, which has the teacher's summed variance and, near it, its mutual information.
    """

    def outputs(self, teacher: Predictive) -> int:
        return teacher.mean.shape[-1] + 1

    def targets(self, teacher: Predictive) -> Targets:
        p = teacher.mean
        label = (p * (1.0 - p)).sum(-1)
        share = teacher.variance.sum(-1) / label.clamp_min(torch.finfo(p.dtype).tiny)
        return {"p": p, "share": share.clamp(TINY, 1.0 - TINY)}

    def loss(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Kullback-Leibler divergence of the labels, and of a coin that shows the share."""
        logits, share = outputs[..., :-1], outputs[..., -1]
        labels = F.kl_div(logits.log_softmax(-1), targets["p"], reduction="none").sum(-1)
        wanted = targets["share"]
        coin = F.binary_cross_entropy_with_logits(share, wanted, reduction="none")
        entropy = torch.special.entr(wanted) + torch.special.entr(1.0 - wanted)
        return (labels + coin - entropy).mean()

    def predictive(self, outputs: Tensor) -> Predictive:
        p = outputs[..., :-1].softmax(-1)
        share = outputs[..., -1].sigmoid().clamp(TINY, 1.0 - TINY)
        concentration = (1.0 / share - 1.0).unsqueeze(-1)
        expected = torch.digamma(concentration + 1.0) - (p * torch.digamma(p * concentration + 1.0)).sum(-1, True)
        energy = -outputs[..., :-1].logsumexp(-1)
        variance = share.unsqueeze(-1) * p * (1.0 - p)
        return Predictive(p, variance, None, Categorical(), expected.squeeze(-1).clamp_min(0.0), energy)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "dirichlet"}


@dataclass(frozen=True)
class GaussianHead(Head):
    """Real targets: ``K`` means and ``K`` logarithms of the epistemic variance over that of the noise.

    Args:
        noise: standard deviation of the noise, > 0; the teacher's.
    """

    noise: float

    def outputs(self, teacher: Predictive) -> int:
        return 2 * (teacher.mean.shape[-1] if teacher.mean.ndim > 1 else 1)

    def targets(self, teacher: Predictive) -> Targets:
        ratio = ((teacher.variance / self.noise**2) - 1.0).clamp_min(TINY)
        columns = (teacher.mean, ratio) if teacher.mean.ndim > 1 else (teacher.mean[:, None], ratio[:, None])
        return {"mean": columns[0], "ratio": columns[1]}

    def loss(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Divergence between Gaussians of the observation's mean, plus that between those of the function alone.

        The first fits means and total variances; the second, without the noise, keeps epistemic variances apart that
        are small beside it. It takes the means as given.
        """
        mean, log_ratio = outputs.chunk(2, -1)
        distance = ((mean - targets["mean"]) / self.noise).square()
        wanted, found = targets["ratio"], log_ratio.exp()
        observed = (1.0 + wanted + distance) / (1.0 + found) - 1.0 - ((1.0 + wanted) / (1.0 + found)).log()
        functions = wanted / found - 1.0 - wanted.log() + log_ratio
        return 0.5 * (observed + functions).sum(-1).mean()

    def predictive(self, outputs: Tensor) -> Predictive:
        mean, log_ratio = outputs.chunk(2, -1)
        noise = torch.full_like(mean, self.noise**2)
        return Predictive(mean, noise * (1.0 + log_ratio.exp()), None, Gaussian(noise=self.noise), noise)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "gaussian", "noise": self.noise}


def head_for(likelihood: Likelihood) -> Head:
    """The head of a student whose teacher has this likelihood.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(likelihood, Categorical):
        return DirichletHead()
    if isinstance(likelihood, Gaussian):
        return GaussianHead(float(torch.as_tensor(likelihood.noise).detach()))
    raise ValueError(
        f"predictions of {type(likelihood).__name__} cannot be distilled; those of Categorical and Gaussian can "
        "(two classes: Categorical with two logits)"
    )
