"""One training run of an estimator: steps of a natural-gradient optimizer, noise and prior beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vogn.capture.objective import Objective
from vogn.data.order import epoch_batches
from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.optim import METHODS, NaturalGradient
from vogn.optim.laplace import laplace
from vogn.optim.prior_tuner import layer_groups
from vogn.optim.range_test import learning_rate_range_test
from vogn.posterior.evidence import precision_at
from vogn.sklearn.recipes import recipe

FIRST_NOISE = 1.0
"""Noise that a regression begins with, in standard deviations of the targets."""
NOISE_FLOOR = 0.01
"""Smallest noise, in standard deviations of the targets."""
NOISE_MEMORY = 0.02
"""Weight of a new batch in the average of squared residuals."""
FIRST_PRIOR = 1.0
"""Precision of the prior before the evidence is asked, and where it cannot be asked."""
TUNINGS = (0.5, 0.75)
"""After which shares of a run the prior is tuned."""
POINT_TUNINGS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The same where no weights are sampled: nothing else then keeps the noise from following an overfitted network."""
FEWEST_FREE = 0.1
"""Smallest share of the targets that counts as not fitted."""
MEASURED = 1000
"""Examples of a batch in such a measurement."""
PRIORS = (1e-2, 1e4)
"""Smallest and largest precision that is chosen by the evidence."""

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
        self.average: float | None = None
        self.inflation = 1.0
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
        if isinstance(self.likelihood, Gaussian):
            self._follow_noise(outputs.detach(), y, write=learn_noise)
        self.done += 1
        return loss

    def _batches(self, n: int, batch_size: int) -> Iterator[Tensor]:
        while True:
            yield from epoch_batches(n, batch_size, self.seed, self.epoch)
            self.epoch += 1

    @torch.no_grad()
    def _follow_noise(self, outputs: Tensor, y: Tensor, *, write: bool) -> None:
        """The noise's square is an average of squared residuals: its stationary point in the variational bound."""
        assert isinstance(self.likelihood, Gaussian)
        seen = float((outputs - y).square().mean())
        self.average = seen if self.average is None else (1.0 - NOISE_MEMORY) * self.average + NOISE_MEMORY * seen
        if write and self.likelihood.log_noise is not None:
            noise = max((self.inflation * self.average) ** 0.5, NOISE_FLOOR)
            self.likelihood.log_noise.fill_(noise).log_()

    def _measures(self) -> bool:
        """Whether the curvature of all data is looked at during the run."""
        point = not self.variational and isinstance(self.likelihood, Gaussian)
        return (self.tuned or point) and not self.info.sets_groups

    def measure(self, x: Tensor, y: Tensor) -> None:
        """Prior and noise by the evidence of the Laplace approximation at the mean, over all examples.

        The precision of a group's prior is where its effective number of parameters is precision times squared length.
        The tracked curvature will not do: one that began narrow still remembers how it began. Where no weights are
        sampled, the residuals are too small by what the network has fitted: their sum of squares is divided by the
        number of targets less all effective parameters (MacKay 1992, "Bayesian Interpolation").
        """
        batches = list(zip(x.split(MEASURED), y.split(MEASURED), strict=True))
        with torch.enable_grad():
            found = laplace(self.network, self.likelihood, batches, prior_precision=FIRST_PRIOR, seed=self.seed)
        blocks, means, fitted = found.sampled_blocks, found.mean(), 0.0
        for group in self.optimizer.param_groups:
            size = group["ess"] * self.temperature  # the evidence is that at temperature 1
            own = [block for block in blocks if set(block.layout.names) & set(group["param_names"])]
            if not own or not group["sampled"]:
                continue
            if self.tuned:
                group["weight_decay"] = precision_at(own, means, bounds=PRIORS) / size
            precision = group["weight_decay"] * size
            for block in own:
                fitted += block.numel - float(replace(block, shift=precision / block.ess).variance().sum()) * precision
        if not self.variational:
            self.inflation = y.numel() / max(y.numel() - fitted, FEWEST_FREE * y.numel())


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
