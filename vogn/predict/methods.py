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
        samples, seed, keep_samples, progress: see :func:`vogn.predict.predict`.
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


def mean_weights(request: Request) -> Predictive:
    """Prediction with the posterior mean of the weights; ignores their uncertainty."""
    weights = weights_for(request.model, request.posterior.mean())
    outputs = evaluate(request.model, weights, request.statistics(weights, None), request.batches)
    mean, variance, _ = request.likelihood.point(outputs)
    return Predictive(mean, variance, None, request.likelihood)


def monte_carlo(request: Request) -> Predictive:
    """Average of the predictive distributions of sampled weights: probabilities are averaged, never logits."""
    return _average(request, _outputs(request, _at_weights(request)))


def linearized(request: Request) -> Predictive:
    """:func:`monte_carlo` of the network's linearisation at the mean weights: the model in which a Laplace or
    Gauss-Newton posterior is exact, while the network itself may be far from it a few standard deviations away."""
    return _average(request, _outputs(request, _linearized_at_mean(request)))


METHODS: dict[str, Callable[[Request], Predictive]] = {
    "linearized": linearized,
    "mc": monte_carlo,
    "mean": mean_weights,
}
"""Value of ``method=`` to implementation."""


OutputsOf = Callable[[dict[str, Tensor], int], Tensor]
"""Outputs of a weight sample and its number."""


def _average(request: Request, outputs: Iterator[Tensor]) -> Predictive:
    return _keep(request, outputs) if request.keep_samples else _stream(request, outputs)


def _at_weights(request: Request) -> OutputsOf:
    drawing = getattr(request.posterior, "drawing", None)  # optional: what a draw is beside its weights

    def outputs(weights: dict[str, Tensor], k: int) -> Tensor:
        statistics = request.statistics(weights, k)
        with nullcontext() if drawing is None else drawing(request.model, seed=request.seed, draw=k):
            return evaluate(request.model, weights, statistics, request.batches)

    return outputs


def _linearized_at_mean(request: Request) -> OutputsOf:
    mean = weights_for(request.model, request.posterior.mean())
    statistics = request.statistics(mean, None)

    def outputs(weights: dict[str, Tensor], k: int) -> Tensor:
        displacement = {name: weights[name] - value for name, value in mean.items()}
        return evaluate_linearized(request.model, mean, displacement, statistics, request.batches)

    return outputs


def _keep(request: Request, found: Iterable[Tensor]) -> Predictive:
    outputs: Tensor | None = None
    for k, output in enumerate(found):
        if outputs is None:
            outputs = output.new_empty((request.samples, *output.shape))
        outputs[k] = output
    assert outputs is not None
    return Predictive(*request.likelihood.predictive(outputs), request.likelihood)


def _stream(request: Request, found: Iterable[Tensor]) -> Predictive:
    """Mean and variance of the mixture in one pass: law of total variance, with Welford's update for its parts."""
    mean: Tensor | None = None
    for k, output in enumerate(found):
        sample_mean, sample_variance, _ = request.likelihood.point(output)
        if mean is None:
            mean, within, between = sample_mean.clone(), sample_variance.clone(), torch.zeros_like(sample_mean)
            continue
        difference = sample_mean - mean
        mean += difference / (k + 1)
        between += difference * (sample_mean - mean)
        within += (sample_variance - within) / (k + 1)
    assert mean is not None
    return Predictive(mean, within + between / request.samples, None, request.likelihood)


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
