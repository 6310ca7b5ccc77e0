"""The interface of a likelihood: loss, labels, derivatives with respect to the outputs, predictions.

A *loss term* is one draw from the observation model: one label of a categorical, one vector of the others. Outputs
``(N, ..., K)`` hold ``K`` outputs per term, so terms have shape ``(N, ...)``; one-dimensional outputs ``(N,)`` stand
for ``K = 1``. Arithmetic is done in float32 at least, whatever the dtype of the outputs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall, announce
from vogn.types import Shape

Prediction = tuple[Tensor, Tensor, Tensor]
"""``(mean, variance, samples)`` on the scale of the observations."""


class Likelihood(ABC):
    """An observation model ``p(target | outputs)`` whose call is the mean negative log-likelihood.

    Class attributes:
        kind: name in the registry and in checkpoints.
    """

    kind: ClassVar[str]

    def __call__(
        self, outputs: Tensor, targets: Tensor, weight: float | Tensor = 1.0, mask: Tensor | None = None
    ) -> Tensor:
        """``sum(mask * weight * terms) / count``; announces itself to the optimizers that listen.

        Args:
            outputs: network outputs, ``(N, ..., K)``.
            targets: observations; see the subclass for shape, dtype and range.
            weight: factor on the loss: a number, or one value per loss term. It does not enter the divisor.
            mask: booleans, one per loss term; whatever stands where it is ``False`` is ignored, NaN included.

        Returns:
            Scalar in nats, in float32 at least. The divisor ``count`` is the number of unmasked loss terms.

        Raises:
            ValueError: for a shape, dtype or value that is not allowed, an empty batch, a mask without ``True``.

        The values of the targets are checked on every device; on an accelerator this (and a mask) costs one
        synchronisation. The value check is skipped inside ``torch.compile``.
        """
        self.check_shapes(outputs, targets)
        shape = self.term_shape(outputs)
        _check_per_term("mask", mask, shape)
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {mask.dtype}; give booleans, for example mask.bool()")
        count = math.prod(shape) if mask is None else int(mask.sum())
        if count == 0:
            raise ValueError("the mask excludes every loss term, so their mean does not exist; leave this batch out")
        if isinstance(weight, Tensor) and weight.ndim > 0:
            _check_per_term("weight", weight, shape)
        elif not isinstance(weight, Tensor):
            weight = float(weight)
        kept_outputs, kept_targets = _blank(outputs, mask), _blank(targets, mask)
        if not torch.compiler.is_compiling():
            self.check_values(kept_outputs, kept_targets)
        terms = self.terms(kept_outputs, kept_targets)
        factor = torch.as_tensor(weight, dtype=terms.dtype, device=terms.device)
        if mask is not None:
            factor = torch.where(mask, factor, 0.0)
        loss = (factor * terms).sum() / count
        announce(LikelihoodCall(self, outputs, targets, weight, mask, count))
        return loss

    def term_shape(self, outputs: Tensor) -> Shape:
        """Shape of the loss terms: ``(N, ...)`` for outputs ``(N, ..., K)``, ``(N,)`` for outputs ``(N,)``."""
        return tuple(outputs.shape[:-1]) if outputs.ndim > 1 else tuple(outputs.shape)

    @abstractmethod
    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for shapes or dtypes that are not allowed. Reads no values."""

    @abstractmethod
    def check_values(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError for targets out of range."""

    @abstractmethod
    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Unreduced negative log-likelihoods with all constants, ``(N, ...)``. Does not check values."""

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets drawn from the model, one per loss term. The generator lives on the device of the outputs."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Derivative of each term with respect to its outputs, in closed form; shape of the outputs."""

    @abstractmethod
    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """Columns ``c_k``, ``(K, *outputs.shape)``, with ``sum_k c_k c_k^T`` the Hessian of a term in its outputs."""

    @abstractmethod
    def hessian(self, outputs: Tensor) -> Tensor:
        """Hessian of each term with respect to its outputs, ``(N, ..., K, K)``."""

    @abstractmethod
    def predictive(self, output_samples: Tensor) -> Prediction:
        """Mean, variance and samples on the scale of the observations.

        Args:
            output_samples: ``(S, N, ..., K)``, network outputs of ``S`` equally weighted posterior samples.

        Returns:
            ``mean`` and ``variance`` ``(N, ..., K)``, ``samples`` ``(S, N, ..., K)``. Variances over samples divide
            by ``S``: they are the exact moments of the mixture.
        """

    def point(self, outputs: Tensor) -> Prediction:
        """:meth:`predictive` of a single set of outputs ``(N, ..., K)``; the samples have ``S = 1``."""
        return self.predictive(outputs.unsqueeze(0))

    @abstractmethod
    def nll(
        self, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """Negative log predictive density of each loss term, ``(N, ...)``.

        Args:
            mean: predictive mean from :meth:`predictive`.
            targets: observations.
            variance: predictive variance, where the model can use it.
            samples: predictive samples ``(S, N, ..., K)``; they give the exact density of the mixture.
        """

    def uncertainty(self, mean: Tensor, variance: Tensor) -> Tensor:
        """How uncertain an observation is, given the moments of its distribution as in :meth:`predictive`.

        Returns:
            For labels the entropy in nats, ``(N, ...)``; by default the variance, ``(N, ..., K)``.
        """
        return variance

    def confidence(self, mean: Tensor) -> Tensor | None:
        """Probability of the most probable label of each loss term, ``(N, ...)``, ``mean`` as in :meth:`predictive`;
        ``None`` for real targets, by default."""
        return None

    def error_unit(self, variance: Tensor) -> Tensor:
        """What an error of the predictive mean is compared with: by default the standard deviation of an observation,
        ``variance`` as in :meth:`predictive`; for labels, whose means are probabilities, one."""
        return variance.sqrt()

    def free_energy(self, outputs: Tensor) -> Tensor | None:
        """``-log sum_k exp(f_k)``, ``(N, ...)``, of outputs that are unnormalised log-probabilities of classes, else
        ``None``.

        Source: Liu et al. (2020), "Energy-based Out-of-distribution Detection", eq. 4 at temperature 1.
        """
        return None

    def interval(self, level: float, mean: Tensor, variance: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of probability ``level``: by default of the samples, element by element.

        Args:
            level: in (0, 1).
            mean, variance, samples: as :meth:`predictive` returns them; ``samples`` may be ``None``.

        Raises:
            ValueError: if there are no samples and the moments do not determine the interval.
        """
        if samples is None:
            raise ValueError(
                f"an interval under {self!r} is one of the samples, which were not kept: predict with "
                "keep_samples=True, and with link='mc' if the network is linearised"
            )
        ordered = samples.sort(0).values  # torch.quantile refuses more than 16 million numbers
        return quantile_of(ordered, 0.5 - 0.5 * level), quantile_of(ordered, 0.5 + 0.5 * level)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Learnable parameters of the observation model; none by default."""
        return iter(())

    def to_dict(self) -> dict[str, Any]:
        """Plain description for checkpoints; see :func:`vogn.likelihoods.likelihood_from_dict`."""
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Likelihood:
        """Rebuild from :meth:`to_dict`."""
        return cls()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the first dimension, dividing by its size; of a single sample nothing is computed."""
    if len(samples) == 1:
        return samples[0], torch.zeros_like(samples[0])
    return samples.mean(0), samples.var(0, correction=0)


def quantile_of(ordered: Tensor, probability: float) -> Tensor:
    """The quantile along the first dimension of sorted samples, with linear interpolation between neighbours."""
    place = probability * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    return ordered[below].lerp(ordered[min(below + 1, len(ordered) - 1)], place - below)


def label_entropy(probabilities: Tensor) -> Tensor:
    """``-p log p`` in nats, element by element; zero at ``p = 0``."""
    return torch.special.entr(probabilities)


def diagonal_columns(scale: Tensor) -> Tensor:
    """Columns of ``diag(scale)`` per loss term: ``(N, ..., K)`` to ``(K, N, ..., K)``, ``(N,)`` to ``(1, N)``."""
    return scale.unsqueeze(0) if scale.ndim == 1 else torch.diag_embed(scale).movedim(-1, 0)


def diagonal_matrices(diagonal: Tensor) -> Tensor:
    """``(N, ..., K)`` to ``(N, ..., K, K)``, ``(N,)`` to ``(N, 1, 1)``."""
    return torch.diag_embed(diagonal.unsqueeze(-1) if diagonal.ndim == 1 else diagonal)


def sum_outputs(values: Tensor) -> Tensor:
    """Sum over the outputs of each loss term: ``(N, ..., K)`` to ``(N, ...)``; ``(N,)`` stays."""
    return values if values.ndim == 1 else values.sum(-1)


def check_outputs(outputs: Tensor, min_ndim: int, form: str) -> None:
    """Raise ValueError unless the outputs are real, non-empty and have at least ``min_ndim`` dimensions."""
    if not outputs.is_floating_point():
        raise ValueError(f"outputs have dtype {outputs.dtype}; a floating-point dtype is needed")
    if outputs.ndim < min_ndim:
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}; {form} is needed")
    if outputs.numel() == 0:
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}: the batch is empty; leave it out")


def check_equal_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless targets and outputs have one shape: broadcasting here is nearly always a mistake."""
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} but outputs {tuple(outputs.shape)}; they must be equal "
            "(use squeeze(-1) or unsqueeze(-1) on one of them)"
        )


def _check_per_term(name: str, tensor: Tensor | None, shape: Shape) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; one value per loss term is needed: {shape}")


def _blank(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Zeros where the mask is False, so that neither values nor gradients of ignored terms can be NaN."""
    if mask is None:
        return tensor
    keep = mask.unsqueeze(-1) if mask.ndim < tensor.ndim else mask
    return torch.where(keep, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
