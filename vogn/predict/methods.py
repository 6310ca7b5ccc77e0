"""The ways to turn a posterior over weights into a predictive distribution, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior.protocol import Posterior
from vogn.predict.closed_form import closed_form
from vogn.predict.evaluation import evaluate, evaluate_linearized, weights_for
from vogn.predict.inputs import Arguments
from vogn.predict.policies import StatisticsOf
from vogn.predict.predictive import Predictive

DRAW_BYTES = 1 << 24
"""Small models draw several weight samples at once, up to this many bytes; large ones hold one sample at a time."""


@dataclass(frozen=True)
class Request:
    """One call of :func:`vogn.predict.predict`, checked; the model is already in evaluation mode.

    Args:
        model, posterior, likelihood: see :func:`vogn.predict.predict`.
        batches: arguments of the model's calls, in the same order at every iteration.
        statistics: batch norm statistics to use with given weights.
        samples, seed, keep_samples, progress, link: see :func:`vogn.predict.predict`.
    """

    model: nn.Module
    posterior: Posterior
    likelihood: Likelihood
    batches: Iterable[Arguments]
    statistics: StatisticsOf
    samples: int
    seed: int
    keep_samples: bool
    progress: bool
    link: str = "mc"


def mean_weights(request: Request) -> Predictive:
    """Prediction with the posterior mean of the weights; ignores their uncertainty."""
    weights = weights_for(request.model, request.posterior.mean())
    outputs = evaluate(request.model, weights, request.statistics(weights, None), request.batches)
    average = _Average(request.likelihood)
    average.add(outputs)
    return Predictive(average.mean, average.variance, None, request.likelihood, average.aleatoric, average.energy)


def monte_carlo(request: Request) -> Predictive:
    """Average of the predictive distributions of sampled weights: probabilities are averaged, never logits."""
    return _average(request, _outputs(request, _at_weights(request)))


def linearized(request: Request) -> Predictive:
    """The network's linearisation at the mean weights: the model in which a Laplace or Gauss-Newton posterior is exact,
    while the network itself may be far from it a few standard deviations away. By :func:`monte_carlo`, or in closed
    form."""
    if request.link == "mc":
        return _average(request, _outputs(request, _linearized_at_mean(request)))
    mean = weights_for(request.model, request.posterior.mean())
    statistics = request.statistics(mean, None)
    return closed_form(
        request.model, request.posterior, request.likelihood, request.batches, statistics, request.link
    )


METHODS: dict[str, Callable[[Request], Predictive]] = {
    "linearized": linearized,
    "mc": monte_carlo,
    "mean": mean_weights,
}
"""Value of ``method=`` to implementation."""


OutputsOf = Callable[[dict[str, Tensor], int], Tensor]
"""Outputs of a weight sample and its number."""


def _at_weights(request: Request) -> OutputsOf:
    drawing = getattr(request.posterior, "drawing", None)  # optional: what a draw is beside its weights

    def outputs(weights: dict[str, Tensor], k: int) -> Tensor:
        statistics = request.statistics(weights, k)
        with nullcontext() if drawing is None else drawing(request.model, seed=request.seed, draw=k):
            return evaluate(request.model, weights, statistics, request.batches)

    return outputs


def _linearized_at_mean(request: Request) -> OutputsOf:
    if hasattr(request.posterior, "drawing"):
        raise ValueError(
            f"a draw of {type(request.posterior).__name__} is more than its weights, and the linearised network sees "
            "weights only: every draw would be the same; use method='mc'"
        )
    mean = weights_for(request.model, request.posterior.mean())
    statistics = request.statistics(mean, None)

    def outputs(weights: dict[str, Tensor], k: int) -> Tensor:
        displacement = {name: weights[name] - value for name, value in mean.items()}
        return evaluate_linearized(request.model, mean, displacement, statistics, request.batches)

    return outputs


class _Average:
    """Running averages over weight samples: the parts of the law of total variance by Welford's update, and what is
    uncertain at known weights."""

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood = likelihood
        self._count = 0

    def add(self, output: Tensor) -> None:
        """The outputs of the next weight sample."""
        mean, variance, _ = self._likelihood.point(output)
        aleatoric, energy = self._likelihood.uncertainty(mean, variance), self._likelihood.free_energy(output)
        self._count += 1
        if self._count == 1:
            self.mean, self._within, self._between = mean.clone(), variance.clone(), torch.zeros_like(mean)
            self.aleatoric, self.energy = aleatoric.clone(), energy
            return
        difference = mean - self.mean
        self.mean += difference / self._count
        self._between += difference * (mean - self.mean)
        self._within += (variance - self._within) / self._count
        self.aleatoric += (aleatoric - self.aleatoric) / self._count
        if energy is not None and self.energy is not None:
            self.energy = self.energy + (energy - self.energy) / self._count

    @property
    def variance(self) -> Tensor:
        """Of the mixture."""
        return self._within + self._between / self._count


def _average(request: Request, found: Iterable[Tensor]) -> Predictive:
    """The predictive distribution of the mixture over weight samples, from the outputs of each."""
    average = _Average(request.likelihood)
    kept: Tensor | None = None
    for k, output in enumerate(found):
        average.add(output)
        if request.keep_samples:
            kept = output.new_empty((request.samples, *output.shape)) if kept is None else kept
            kept[k] = output
    mean, variance, samples = average.mean, average.variance, None
    if kept is not None:
        mean, variance, samples = request.likelihood.predictive(kept)
    return Predictive(mean, variance, samples, request.likelihood, average.aleatoric, average.energy)


def _outputs(request: Request, outputs_of: OutputsOf) -> Iterator[Tensor]:
    """Outputs ``(N, ..., K)`` of one weight sample after the other."""
    parameters = list(request.model.parameters())
    size = sum(max(4, p.element_size()) * p.numel() for p in parameters)
    chunk = max(1, min(request.samples, DRAW_BYTES // max(1, size)))
    for start in range(0, request.samples, chunk):
        count = min(chunk, request.samples - start)
        draws = request.posterior.sample(count, seed=request.seed, start=start)
        for i in range(count):
            weights = weights_for(request.model, {name: draw[i] for name, draw in draws.items()})
            yield outputs_of(weights, start + i)
            if request.progress:
                done = start + i + 1
                end = "\n" if done == request.samples else ""
                print(f"\rpredict: weight sample {done} of {request.samples}", end=end, file=sys.stderr, flush=True)
