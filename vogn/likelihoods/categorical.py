"""Class labels with a softmax over the last dimension of the outputs."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from vogn.likelihoods.base import Likelihood, Prediction, at_least_float32, check_outputs, label_entropy, moments


@final
class Categorical(Likelihood):
    """``p(y = c | f) = softmax(f)_c``.

    Outputs: logits ``(N, ..., C)``, class dimension last, ``C >= 2``. Targets: integers ``(N, ...)`` in ``[0, C)``.
    One loss term per label.
    """

    kind: ClassVar[str] = "categorical"

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_shapes`."""
        check_outputs(outputs, 2, "(N, ..., C) with the class dimension last")
        if outputs.shape[-1] < 2:
            raise ValueError(f"outputs have {outputs.shape[-1]} class; use at least 2, or the Bernoulli likelihood")
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(f"targets have dtype {targets.dtype}; class indices of an integer dtype are needed")
        if targets.shape != outputs.shape[:-1]:
            raise ValueError(
                f"targets have shape {tuple(targets.shape)}; outputs of shape {tuple(outputs.shape)} (class dimension "
                f"last) need {tuple(outputs.shape[:-1])}"
            )

    def check_values(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_values`."""
        classes = outputs.shape[-1]
        if bool(((targets < 0) | (targets >= classes)).any()):
            low, high = int(targets.min()), int(targets.max())
            raise ValueError(
                f"targets range from {low} to {high}; {classes} outputs allow 0 to {classes - 1} "
                "(exclude padding with mask=)"
            )

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``-log softmax(f)_y``, ``(N, ...)``."""
        self.check_shapes(outputs, targets)
        log_p = torch.log_softmax(at_least_float32(outputs), -1)
        return -log_p.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Labels ``(N, ...)``, int64, by the Gumbel-max trick (no synchronisation with the device)."""
        logits = at_least_float32(outputs)
        clocks = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - clocks.log()).argmax(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``softmax(f) - onehot(y)``."""
        self.check_shapes(outputs, targets)
        p = torch.softmax(at_least_float32(outputs), -1)
        index = targets.long().unsqueeze(-1)
        return p.scatter_add(-1, index, -torch.ones_like(index, dtype=p.dtype))

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """``c_k = sqrt(p_k) (e_k - p)``: ``C`` columns, ``(C, N, ..., C)``."""
        p = torch.softmax(at_least_float32(outputs), -1)
        root = p.sqrt()
        return (torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)).movedim(-1, 0)

    def hessian(self, outputs: Tensor) -> Tensor:
        """``diag(p) - p p^T``, ``(N, ..., C, C)``."""
        p = torch.softmax(at_least_float32(outputs), -1)
        return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)

    def predictive(self, output_samples: Tensor) -> Prediction:
        """Averaged probabilities, their variance over the samples, and the probabilities of each sample."""
        p = torch.softmax(at_least_float32(output_samples), -1)
        return *moments(p), p

    def uncertainty(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The entropy of the label in nats, ``(N, ...)``."""
        return label_entropy(mean).sum(-1)

    def free_energy(self, outputs: Tensor) -> Tensor:
        """See :meth:`Likelihood.free_energy`."""
        return -at_least_float32(outputs).logsumexp(-1)

    def confidence(self, mean: Tensor) -> Tensor:
        """The largest probability, ``(N, ...)``."""
        return mean.amax(-1)

    def error_unit(self, variance: Tensor) -> Tensor:
        """One: errors of probabilities are absolute."""
        return torch.ones_like(variance)

    def nll(
        self, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """``-log mean_y``, ``(N, ...)``; probabilities below the smallest normal number are raised to it.

        ``variance`` and ``samples`` are not needed: the mean probabilities are the predictive distribution.
        """
        self.check_shapes(mean, targets)
        self.check_values(mean, targets)
        p = at_least_float32(mean).gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)
        return -p.clamp_min(torch.finfo(p.dtype).tiny).log()
