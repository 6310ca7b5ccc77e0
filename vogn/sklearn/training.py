"""One training run of an estimator: steps of a natural-gradient optimizer, noise and prior beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.capture.objective import Objective
from vogn.data.order import epoch_batches
from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.optim import METHODS, NaturalGradient
from vogn.optim.evidence_tuning import (
    FIRST_NOISE,
    FIRST_PRIOR,
    POINT_TUNINGS,
    TUNINGS,
    FollowedNoise,
    noise_inflation,
    tune_by_evidence,
)
from vogn.optim.prior_tuner import layer_groups
from vogn.optim.range_test import learning_rate_range_test
from vogn.sklearn.recipes import recipe

Watch = Callable[[int, float], None]
"""Told the number of a step and its loss."""


class Training:
    """A network, its optimizer and its likelihood, and the steps they have made.

    Args:
        network: is trained in place; inputs are its parameters' dtype and device.
        likelihood: :class:`Categorical`, or a :class:`Gaussian` with a learnable noise.
        method: key of :data:`vogn.METHODS`.
        variational: the mode.
        examples: number of training examples.
        temperature: of the posterior, > 0.
        prior_precision: a number, or ``"evidence"``.
        options: further keyword arguments of the method.
        seed: of the order of the data and of all noise.
    """

    def __init__(
        self,
        network: nn.Module,
        likelihood: Likelihood,
        *,
        method: str,
        variational: bool,
        examples: int,
        temperature: float,
        prior_precision: float | str,
        options: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.network, self.likelihood, self.seed, self.variational = network, likelihood, seed, variational
        self.info, self.temperature = METHODS[method], temperature
        self.tuned = prior_precision == "evidence"
        self.precision = FIRST_PRIOR if self.tuned else float(prior_precision)
        chosen: dict[str, Any] = {"ess": examples / temperature, "variational": variational, "seed": seed}
        chosen |= recipe(method, variational, options)
        if not self.info.sets_groups:
            chosen["weight_decay"] = self.precision / chosen["ess"]
        chosen.setdefault("groups", layer_groups(network) if self.tuned and self.info.needs_model else ())
        self.optimizer: NaturalGradient = self.info.build(network, **chosen)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.noise = FollowedNoise(likelihood) if isinstance(likelihood, Gaussian) else None
        self.done = 0
        self.epoch = 0

    def choose_rate(self, x: Tensor, y: Tensor, batch_size: int) -> float:
        """The learning rate of a range test on these data; every group gets it.

        Returns:
            The rate.
        """
        batches = [(x[rows], y[rows]) for rows in epoch_batches(len(x), batch_size, self.seed, 0)]
        self.network.train()
        found = learning_rate_range_test(self.optimizer, self.network, self.likelihood, batches)
        self.rates = [found.suggestion] * len(self.rates)
        return found.suggestion

    def fit(self, x: Tensor, y: Tensor, *, steps: int, batch_size: int, watch: Watch | None = None) -> None:
        """So many steps with a learning rate that rises, stays, and falls to zero."""
        shares = TUNINGS if self.variational else POINT_TUNINGS
        due = {max(1, round(steps * share)) for share in shares} if self._measures() else set()
        batches = self._batches(len(x), batch_size)
        for step in range(steps):
            factor = schedule(step, steps)
            if step in due:
                self.measure(x, y)
            rows = next(batches)
            loss = self.step(x[rows], y[rows], rows, factor, learn_noise=step >= steps // 10)
            if watch is not None:
                watch(step, loss)

    def fit_once(
        self, x: Tensor, y: Tensor, *, batch_size: int, examples: int, watch: Watch | None = None
    ) -> None:
        """One epoch of new examples at the full learning rate, as part of a stream of ``examples`` so far."""
        for group in self.optimizer.param_groups if not self.info.sets_groups else ():
            group["ess"] = examples / self.temperature
            group["weight_decay"] = self.precision / group["ess"]
        for rows in epoch_batches(len(x), batch_size, self.seed, self.epoch):
            loss = self.step(x[rows], y[rows], rows, 1.0)
            if watch is not None:
                watch(self.done, loss)
        self.epoch += 1

    def step(self, x: Tensor, y: Tensor, rows: Tensor, factor: float, *, learn_noise: bool = True) -> float:
        """One step of the optimizer; the loss under the weights that it saw."""
        optimizer = self.optimizer
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True) if not self.info.sets_groups else ():
            group["lr"] = rate * factor
        self.network.train()
        if any("objective" in step.REQUIRES for step in optimizer.chain):
            loss = float(optimizer.step(Objective(self.network, self.likelihood, x, y)))
            with torch.no_grad():
                outputs = self.network(x)
        else:
            total, samples = 0.0, int(optimizer.param_groups[0]["mc_samples"])
            optimizer.zero_grad()
            for _ in range(samples):
                with optimizer.sampled_params(rows), torch.enable_grad():
                    outputs = self.network(x)
                    value = self.likelihood(outputs, y)
                    value.backward()
                total += float(value.detach())
            optimizer.step()
            loss = total / samples
        if self.noise is not None:
            self.noise.follow(outputs.detach(), y, write=learn_noise)
        self.done += 1
        return loss

    def _batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        while True:
            yield from epoch_batches(n, batch_size, self.seed, self.epoch)
            self.epoch += 1

    def _measures(self) -> bool:
        """Whether the curvature of all data is looked at during the run."""
        point = not self.variational and self.noise is not None
        return (self.tuned or point) and not self.info.sets_groups

    def measure(self, x: Tensor, y: Tensor) -> None:
        """Prior and noise by the evidence of the Laplace approximation at the mean, over all examples.

        Where no weights are sampled, the residuals are too small by what the network has fitted: their sum of squares
        is divided by the number of targets less all effective parameters.
        """
        size = self.optimizer.param_groups[0]["ess"] * self.temperature
        fitted = tune_by_evidence(
            self.optimizer, self.network, self.likelihood, x, y, size=size, tuned=self.tuned, seed=self.seed
        )
        if not self.variational and self.noise is not None:
            self.noise.inflation = noise_inflation(y.numel(), fitted)


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: it rises for a twentieth of the run (of a short run: for 100 steps, at most for
    three tenths), stays, and falls to zero in the second half."""
    rise = max(0.05 * steps, min(100.0, 0.3 * steps))
    return min(1.0, (step + 1) / rise, 2.0 * (1.0 - step / steps))


def make_likelihood(labels: bool, like: Tensor) -> Likelihood:
    """The observation model of an estimator, where the network lives."""
    if labels:
        return Categorical()
    likelihood = Gaussian(noise="learn", initial=FIRST_NOISE)
    assert likelihood.log_noise is not None
    likelihood.log_noise.data = likelihood.log_noise.data.to(like)
    return likelihood
