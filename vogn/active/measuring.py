"""What is measured after every update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.active.acquisition import NUMBERS, target_kind
from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.predict import predict


@torch.no_grad()
def measure(
    model: nn.Module,
    posterior: Posterior,
    likelihood: Likelihood,
    test: tuple[Tensor, Tensor],
    *,
    samples: int,
    seed: int,
    prediction: Mapping[str, Any],
) -> dict[str, float]:
    """``accuracy`` or ``rmse``, and ``nll``, of the predictive distribution on test examples.

    Args:
        model, posterior, likelihood: what predicts.
        test: inputs and targets.
        samples, seed, prediction: see :func:`vogn.predict`.

    Returns:
        ``accuracy`` in [0, 1] or ``rmse`` in the unit of the targets; ``nll`` in nats per example.
    """
    x, y = test
    numbers = target_kind(likelihood) == NUMBERS
    found = predict(
        model, posterior, x, samples=samples, seed=seed, likelihood=likelihood, keep_samples=numbers, **dict(prediction)
    )
    y = y.to(found.mean.device)
    nll = float(found.nll(y).double().mean())
    if numbers:
        return {"rmse": float((found.mean - y).double().square().mean().sqrt()), "nll": nll}
    guess = found.mean.argmax(-1) if likelihood.kind == "categorical" else (found.mean > 0.5).to(y.dtype)
    return {"accuracy": float((guess == y).double().mean()), "nll": nll}
