"""The ways to turn a posterior over weights into a predictive distribution, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior.protocol import Posterior
from vogn.predict.averaging import Average, averaged
from vogn.predict.closed_form import closed_form
from vogn.predict.drawing import Evaluation, outputs_of_draws
from vogn.predict.evaluation import evaluate, evaluate_linearized, weights_for
from vogn.predict.inputs import Batches
from vogn.predict.last_layer import head_of
from vogn.predict.policies import StatisticsOf
from vogn.predict.predictive import Predictive
from vogn.predict.vectorised import evaluate_together


@dataclass(frozen=True)
class Request:
    """One call of :func:`vogn.predict.predict`, checked; the model is already in evaluation mode.

    Args:
        model, posterior, likelihood: see :func:`vogn.predict.predict`.
        batches: arguments of the model's calls, in the same order at every iteration.
        statistics: batch norm statistics to use with given weights.
        samples, seed, keep_samples, link, noise, tolerance: see :func:`vogn.predict.predict`.
    """

    model: nn.Module
    posterior: Posterior
    likelihood: Likelihood
    batches: Batches
    statistics: StatisticsOf
    samples: int
    seed: int
    keep_samples: bool
    link: str = "mc"
    noise: str = "independent"
    tolerance: float | None = None


def mean_weights(request: Request) -> Predictive:
    """Prediction with the posterior mean of the weights; ignores their uncertainty."""
    weights = weights_for(request.model, request.posterior.mean())
    outputs = evaluate(request.model, weights, request.statistics(weights, None), request.batches)
    average = Average(request.likelihood)
    average.add(outputs)
    return Predictive(average.mean, average.variance, None, request.likelihood, average.aleatoric, average.energy)


def monte_carlo(request: Request) -> Predictive:
    """Average of the predictive distributions of sampled weights: probabilities are averaged, never logits."""
    return _average(request, _at_weights(request))


def linearized(request: Request) -> Predictive:
    """The network's linearisation at the mean weights: the model in which a Laplace or Gauss-Newton posterior is exact,
    while the network itself may be far from it a few standard deviations away. By :func:`monte_carlo`, or in closed
    form."""
    mean = weights_for(request.model, request.posterior.mean())
    statistics = request.statistics(mean, None)
    if request.link == "mc":
        return _average(request, _linearized_at(mean, statistics, request))
    return closed_form(
        request.model, request.posterior, request.likelihood, request.batches, statistics, request.link
    )


METHODS: dict[str, Callable[[Request], Predictive]] = {
    "linearized": linearized,
    "mc": monte_carlo,
    "mean": mean_weights,
}
"""Value of ``method=`` to implementation."""


def _average(request: Request, evaluation: Evaluation) -> Predictive:
    found = outputs_of_draws(
        request.model,
        request.posterior,
        evaluation,
        samples=request.samples,
        seed=request.seed,
        noise=request.noise,
        tolerance=request.tolerance,
    )
    return averaged(
        found,
        request.likelihood,
        samples=request.samples,
        noise=request.noise,
        tolerance=request.tolerance,
        keep_samples=request.keep_samples,
    )


def _at_weights(request: Request) -> Evaluation:
    """The network at the sampled weights."""
    drawing = getattr(request.posterior, "drawing", None)  # optional: what a draw is beside its weights

    def one(weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], k: int) -> Tensor:
        with nullcontext() if drawing is None else drawing(request.model, seed=request.seed, draw=k):
            return evaluate(request.model, weights, statistics, request.batches)

    def several(weights: Mapping[str, Tensor], statistics: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
        if drawing is not None:
            return None
        return evaluate_together(request.model, weights, statistics, request.batches)

    return Evaluation(one, several, request.statistics)


def _linearized_at(mean: Mapping[str, Tensor], statistics: Mapping[str, Tensor], request: Request) -> Evaluation:
    """The linearised network at the sampled weights; where only the last layer moves, from its features alone."""
    if hasattr(request.posterior, "drawing"):
        raise ValueError(
            f"a draw of {type(request.posterior).__name__} is more than its weights, and the linearised network sees "
            "weights only: every draw would be the same; use method='mc'"
        )
    head = head_of(request.model, request.posterior, mean, statistics, request.batches)

    def one(weights: Mapping[str, Tensor], _: Mapping[str, Tensor], k: int) -> Tensor:
        displacement = {name: weights[name] - value for name, value in mean.items()}
        if head is not None:
            return head.outputs(displacement)
        return evaluate_linearized(request.model, mean, displacement, statistics, request.batches)

    return Evaluation(one)
