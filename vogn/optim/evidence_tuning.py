"""Noise and prior of a training run: the noise follows residuals, the prior the evidence at the mean.

What the scikit-learn estimators and the command line share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Gaussian, Likelihood
from vogn.optim.base import NaturalGradient
from vogn.optim.laplace import laplace
from vogn.posterior.evidence import precision_at

FIRST_NOISE = 1.0
"""Noise that a regression begins with, in standard deviations of the targets."""
NOISE_FLOOR = 0.01
"""Smallest noise, in standard deviations of the targets."""
NOISE_MEMORY = 0.02
"""Weight of a new batch in the average of squared residuals."""
FIRST_PRIOR = 1.0
"""Precision of the prior before the evidence is asked, and where it cannot be asked."""
TUNINGS = (0.5, 0.75)
"""After which shares of a run the evidence is asked."""
POINT_TUNINGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The same where no weights are sampled: nothing else then keeps the noise from following an overfitted network."""
FEWEST_FREE = 0.1
"""Smallest share of the targets that counts as not fitted."""
MEASURED = 1000
"""Examples of a batch in such a measurement."""
PRIORS = (1e-2, 1e4)
"""Smallest and largest precision that is chosen by the evidence."""


class FollowedNoise:
    """A learnable noise whose square is an average of squared residuals, its stationary point in the bound.

    Args:
        likelihood: of standardised targets; a fixed noise stays.

    Attributes:
        average: of squared residuals, exponentially weighted; ``None`` before the first.
        inflation: factor on it: above 1 where residuals are too small by what the network has fitted.
    """

    def __init__(self, likelihood: Gaussian) -> None:
        self.likelihood = likelihood
        self.average: float | None = None
        self.inflation = 1.0

    @torch.no_grad()
    def follow(self, outputs: Tensor, targets: Tensor, *, write: bool = True) -> None:
        """Take the residuals of a batch into the average, and with ``write`` the noise from it."""
        seen = float((outputs - targets).square().mean())
        self.average = seen if self.average is None else (1.0 - NOISE_MEMORY) * self.average + NOISE_MEMORY * seen
        if write and self.likelihood.log_noise is not None:
            noise = max((self.inflation * self.average) ** 0.5, NOISE_FLOOR)
            self.likelihood.log_noise.fill_(noise).log_()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {"likelihood": self.likelihood.to_dict(), "average": self.average, "inflation": self.inflation}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, for a likelihood of the same kind.

        Raises:
            KeyError, TypeError, ValueError: if it is no such state.
        """
        stored = Gaussian.from_dict(state["likelihood"])
        if (stored.log_noise is None) != (self.likelihood.log_noise is None):
            raise ValueError("one noise is fixed and the other is learned")
        if stored.log_noise is not None and self.likelihood.log_noise is not None:
            self.likelihood.log_noise.copy_(stored.log_noise)
        self.average = None if state["average"] is None else float(state["average"])
        self.inflation = float(state["inflation"])


def tune_by_evidence(
    optimizer: NaturalGradient,
    network: nn.Module,
    likelihood: Likelihood,
    x: Tensor,
    y: Tensor,
    *,
    size: float,
    tuned: bool,
    seed: int,
) -> float:
    """The prior of every group, by the evidence of the Laplace approximation at the mean over all examples.

    The precision of a group's prior is where its effective number of parameters is precision times squared length. The
    tracked curvature will not do: one that began narrow still remembers how it began.

    Args:
        optimizer: whose groups' ``weight_decay`` is set.
        network, likelihood: at the weights and noise of this point of the run.
        x, y: all training examples.
        size: number of examples that the precision is divided by, > 0; the evidence is that at temperature 1.
        tuned: ``False`` leaves the priors and only counts.
        seed: of what is drawn.

    Returns:
        The effective number of parameters of all groups.

    Source: MacKay (1992), "Bayesian Interpolation".
    """
    batches: Iterable[Any] = list(zip(x.split(MEASURED), y.split(MEASURED), strict=True))
    with torch.enable_grad():
        found = laplace(network, likelihood, batches, prior_precision=FIRST_PRIOR, seed=seed)
    blocks, means, fitted = found.sampled_blocks, found.mean(), 0.0
    for group in optimizer.param_groups:
        own = [block for block in blocks if set(block.layout.names) & set(group["param_names"])]
        if not own or not group["sampled"]:
            continue
        if tuned:
            group["weight_decay"] = precision_at(own, means, bounds=PRIORS) / size
        precision = group["weight_decay"] * size
        for block in own:
            fitted += block.numel - float(replace(block, shift=precision / block.ess).variance().sum()) * precision
    return fitted


def noise_inflation(targets: int, fitted: float) -> float:
    """Factor on the mean squared residual of so many targets, of which a number of parameters has fitted its share."""
    return targets / max(targets - fitted, FEWEST_FREE * targets)
