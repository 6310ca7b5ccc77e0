"""The entry point of prediction."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from vogn.likelihoods import Likelihood, likelihood_from_dict
from vogn.posterior.protocol import Posterior
from vogn.predict.calibration import BatchNormCalibration
from vogn.predict.closed_form import check_link
from vogn.predict.evaluation import undisturbed
from vogn.predict.inputs import batches_of
from vogn.predict.methods import METHODS, Request
from vogn.predict.policies import choose
from vogn.predict.predictive import Predictive


def predict(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
    *,
    method: str = "mc",
    link: str = "mc",
    samples: int = 32,
    likelihood: Likelihood | None = None,
    batchnorm: str | None = None,
    calibration: Any = None,
    batch_size: int = 256,
    seed: int = 0,
    keep_samples: bool = True,
    progress: bool = False,
) -> Predictive:
    """The predictive distribution at ``x``.

    The model runs in evaluation mode with the posterior's weights in place of its own. A network with batch norm is a
    function of its weights *and* its statistics; ``batchnorm`` says which ones a weight sample is used with. Draw ``k``
    of a seed is the same in every call, so predicting batch after batch is predicting all at once. Afterwards training
    flags, parameters, buffers, torch's random states and the gradient mode are as they were, also after an exception.

    Args:
        model: returns a tensor ``(N, ..., K)``; parameters that the posterior does not name are used as they are.
        posterior: any :class:`vogn.posterior.Posterior`.
        x: a tensor, tuple or dictionary of tensors (``model(x)``, ``model(*x)``, ``model(**x)``), or a list,
            ``DataLoader`` or iterable of batches: inputs or (inputs, targets). A loader must not shuffle.
        method: ``"mc"`` averages predictive distributions over sampled weights; ``"linearized"`` does so with the
            network's linearisation at the mean weights, the better choice for :func:`vogn.laplace`, at two to three
            times the cost (batch norm then has the statistics of the mean weights); ``"mean"`` uses the mean weights.
        link: with ``"linearized"``, from the outputs' Gaussian to the observations. ``"mc"``: by weight samples. In
            closed form, without samples: ``"exact"`` for real targets, ``"probit"`` for labels, ``"laplace_bridge"`` (a
            Dirichlet, less accurate) for classes. They cost as much as the Jacobians, or, for a posterior over the last
            layer alone, one forward pass.
        samples: number of weight samples, >= 1.
        likelihood: observation model; ``None`` takes the one stored in the posterior.
        batchnorm: ``"recalibrate"`` uses every weight sample with statistics estimated under it from ``calibration``;
            ``"mean"`` uses one set for all: those of the mean weights, estimated from ``calibration``, or without it
            the model's running statistics. ``None`` is ``"recalibrate"`` with ``calibration``; without, it is
            ``"mean"`` and warns, once per model with batch norm, if the samples differ from the mean.
        calibration: training inputs, in any form that ``x`` may have, shuffling loaders too; a few hundred examples in
            batches like those of training are enough. To predict batch after batch, pass one
            :class:`vogn.BatchNormCalibration` around them: it remembers the statistics between calls.
        batch_size: examples per call of the model when ``x`` or ``calibration`` holds tensors, >= 1.
        seed: fixes the weight samples.
        keep_samples: ``False`` keeps only mean and variance: memory ``N K`` instead of ``samples N K``.
        progress: report every weight sample on standard error.

    Returns:
        ``mean`` and ``variance`` ``(N, ..., K)``, ``samples`` ``(samples, N, ..., K)`` or ``None``, where the model's
        outputs live.

    Example:
        >>> import torch, vogn
        >>> from vogn.posterior import GaussianPosterior
        >>> model = torch.nn.Linear(2, 3)
        >>> point = GaussianPosterior([], {name: p.detach() for name, p in model.named_parameters()})
        >>> found = vogn.predict(model, point, torch.zeros(4, 2), samples=2, likelihood=vogn.likelihoods.Categorical())
        >>> tuple(found.mean.shape), float(found.mean.sum().round())
        ((4, 3), 4.0)

    Raises:
        ValueError: for an unknown method, a link that does not fit, no likelihood, no examples, a shuffling loader,
            ``samples < 1``, an unknown ``batchnorm``, ``"recalibrate"`` without calibration inputs, or a posterior
            that does not fit.
        TypeError: if the model does not return a tensor.
        NotImplementedError: with ``"linearized"``, naming an operation that PyTorch cannot differentiate forward.

    Source: Immer, Korzepa, Bauer (2021), "Improving predictions of Bayesian neural nets via local linearization", for
    ``"linearized"``.
    """
    if method not in METHODS:
        raise ValueError(f"unknown prediction method {method!r}; known methods: {', '.join(sorted(METHODS))}")
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    observation_model = _likelihood(posterior, likelihood)
    check_link(link, method, observation_model)
    inputs = _calibration(calibration, batch_size)
    policy = choose(batchnorm, inputs)
    with undisturbed(model, seed=seed), nullcontext() if inputs is None else inputs.reading():
        batches = batches_of(x, batch_size)
        statistics = policy(model, posterior, inputs, seed)
        request = Request(
            model, posterior, observation_model, batches, statistics, samples, seed, keep_samples, progress, link
        )
        return METHODS[method](request)


def _calibration(given: Any, batch_size: int) -> BatchNormCalibration | None:
    if given is None or isinstance(given, BatchNormCalibration):
        return given
    return BatchNormCalibration(given, batch_size=batch_size)


def _likelihood(posterior: Posterior, given: Likelihood | None) -> Likelihood:
    """The given likelihood, else the one that the posterior carries (a likelihood or its description)."""
    if given is not None:
        return given
    stored = getattr(posterior, "likelihood", None)  # optional: the protocol does not ask for it
    if isinstance(stored, Likelihood):
        return stored
    if isinstance(stored, Mapping):
        return likelihood_from_dict(stored)
    raise ValueError(
        "the posterior does not know its likelihood; pass one, e.g. predict(..., likelihood=vogn.Categorical())"
    )
