"""Binary labels, one logit each."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vogn.likelihoods.base import (
    Likelihood,
    Prediction,
    at_least_float32,
    check_equal_shapes,
    check_outputs,
    diagonal_columns,
    diagonal_matrices,
    label_entropy,
    moments,
    sum_outputs,
)


@final
class Bernoulli(Likelihood):
    """``p(y = 1 | f) = sigmoid(f)``, independently for each output.

    Outputs: logits ``(N,)`` or ``(N, ..., K)``. Targets: the same shape, 0 or 1 (values between are soft labels and
    give the cross-entropy). One loss term per vector of ``K`` outputs: the sum over its ``K`` labels.
    """

    kind: ClassVar[str] = "bernoulli"

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_shapes`."""
        check_outputs(outputs, 1, "(N,) or (N, ..., K)")
        if targets.is_complex():
            raise ValueError(f"targets have dtype {targets.dtype}; a real dtype is needed")
        check_equal_shapes(outputs, targets)

    def check_values(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_values`."""
        if not bool(((targets >= 0) & (targets <= 1)).all()):
            low, high = float(targets.min()), float(targets.max())
            raise ValueError(f"targets range from {low:g} to {high:g}; labels between 0 and 1 are needed")

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``sum_k softplus(f_k) - y_k f_k``, ``(N, ...)``."""
        self.check_shapes(outputs, targets)
        f = at_least_float32(outputs)
        y = targets.to(f.dtype)
        return sum_outputs(y * softplus(-f, threshold=80.0) + (1 - y) * softplus(f, threshold=80.0))

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Labels 0.0 or 1.0 in the shape of the outputs."""
        return torch.bernoulli(torch.sigmoid(at_least_float32(outputs)), generator=generator)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``sigmoid(f) - y``."""
        self.check_shapes(outputs, targets)
        f = at_least_float32(outputs)
        return torch.sigmoid(f) - targets.to(f.dtype)

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """``c_k = sqrt(p_k (1 - p_k)) e_k``: ``K`` columns, ``(K, *outputs.shape)``."""
        return diagonal_columns(_label_variance(outputs).sqrt())

    def hessian(self, outputs: Tensor) -> Tensor:
        """``diag(p (1 - p))``, ``(N, ..., K, K)``."""
        return diagonal_matrices(_label_variance(outputs))

    def predictive(self, output_samples: Tensor) -> Prediction:
        """Averaged probabilities, their variance over the samples, and the probabilities of each sample."""
        p = torch.sigmoid(at_least_float32(output_samples))
        return *moments(p), p

    def uncertainty(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The sum of the labels' entropies in nats, ``(N, ...)``."""
        return sum_outputs(label_entropy(mean) + label_entropy(1.0 - mean))

    def confidence(self, mean: Tensor) -> Tensor:
        """``max(p, 1 - p)``, multiplied over the labels of a term: ``(N, ...)``."""
        larger = torch.maximum(mean, 1.0 - mean)
        return larger if larger.ndim == 1 else larger.prod(-1)

    def error_unit(self, variance: Tensor) -> Tensor:
        """One: errors of probabilities are absolute."""
        return torch.ones_like(variance)

    def nll(
        self, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """Negative log predictive density, ``(N, ...)``.

        With ``samples`` the labels of one term share the posterior sample: ``-log mean_s prod_k p_sk(y_k)``. Without,
        they are independent given ``mean``. Both agree for ``K = 1``. Probabilities below the smallest normal number
        are raised to it.
        """
        self.check_shapes(mean, targets)
        self.check_values(mean, targets)
        p = at_least_float32(mean if samples is None else samples)
        y, tiny = targets.to(p.dtype), torch.finfo(p.dtype).tiny
        log_p = y * p.clamp_min(tiny).log() + (1 - y) * (1 - p).clamp_min(tiny).log()
        joint = log_p if targets.ndim == 1 else log_p.sum(-1)
        return -joint if samples is None else math.log(len(p)) - joint.logsumexp(0)


def _label_variance(outputs: Tensor) -> Tensor:
    f = at_least_float32(outputs)
    return torch.sigmoid(f) * torch.sigmoid(-f)  # 1 - sigmoid(f) would be 0 for large f
