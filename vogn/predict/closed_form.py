"""Predictions of the linearised network without weight samples: the Gaussian of its outputs, and a link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.likelihoods.base import at_least_float32
from vogn.posterior.protocol import Posterior
from vogn.predict.evaluation import Call, calls_of, concatenated, plain_attention, weights_for
from vogn.predict.jacobians import jacobians
from vogn.predict.last_layer import VarianceOf, features_of, is_last, last_layer_of
from vogn.predict.links import LINKS, Link, Linked
from vogn.predict.predictive import Predictive

COVARIANCE_ELEMENTS = 1 << 25
"""Covariances of the outputs are formed for so many examples at a time as keep to this many numbers."""

OutputGaussian = Iterator[tuple[Tensor, Tensor]]
"""Mean ``(b, K)`` and covariance ``(b, K, K)``, or variance ``(b, K)``, of the outputs of consecutive examples."""


def closed_form(
    model: nn.Module,
    posterior: Posterior,
    likelihood: Likelihood,
    batches: Any,
    statistics: Mapping[str, Tensor],
    link: str,
) -> Predictive:
    """The predictive distribution under a link.

    Args:
        model, posterior, likelihood: see :func:`vogn.predict.predict`; the model is in evaluation mode.
        batches: arguments of the model's calls.
        statistics: batch norm statistics of the mean weights.
        link: a name from :data:`LINKS`.

    Raises:
        ValueError: if there is no example, or an example has more than a vector of outputs.
    """
    mean, found = weights_for(model, posterior.mean()), LINKS[link]
    short = last_layer_of(model, posterior)
    outputs: list[Tensor] = []
    parts: list[Linked] = []
    no_calls: list[tuple[Tensor, Tensor]] = []
    for call in calls_of(model, statistics, batches):
        with nullcontext(no_calls) if short is None else features_of(short[0]) as seen:
            raw = call.outputs(dict(mean))
        whole = at_least_float32(raw)
        if whole.ndim > 2:
            raise ValueError(
                f"closed-form links need outputs (N, K) or (N,), got {('N', *whole.shape[1:])}: use link='mc'"
            )
        if short is not None and is_last(seen, raw):
            gaussians = _by_features(seen[0][0], whole, short[1], found)
        else:
            gaussians = _by_jacobians(model, posterior, mean, call, found)
        for centre, variance in gaussians:
            linked = found.apply(likelihood, centre, variance)
            one_number = whole.ndim == 1
            parts.append(Linked(*(part.reshape(len(part)) for part in linked)) if one_number else linked)
            outputs.append(centre)
    centre = concatenated(outputs)
    average, variance, aleatoric = (torch.cat(column) for column in zip(*parts, strict=True))
    return Predictive(average, variance, None, likelihood, aleatoric, likelihood.free_energy(centre))


def _by_features(features: Tensor, outputs: Tensor, variance_of: VarianceOf, link: Link) -> OutputGaussian:
    """The network ends in the one layer whose weights are uncertain."""
    size = outputs.shape[-1] ** (2 if link.full else 1)
    at_a_time = max(1, COVARIANCE_ELEMENTS // size)
    for a, centre in zip(features.split(at_a_time), outputs.split(at_a_time), strict=True):
        yield centre, variance_of(a, not link.full).to(centre)


def _by_jacobians(
    model: nn.Module, posterior: Posterior, mean: Mapping[str, Tensor], call: Call, link: Link
) -> OutputGaussian:
    """Any network and any posterior."""
    with plain_attention():
        for outputs, found in jacobians(model, mean, call.buffers, call.inputs):
            centre = at_least_float32(outputs)
            covariance = posterior.functional_variance(found).to(centre)
            yield centre, covariance if link.full else covariance.diagonal(dim1=-2, dim2=-1)
