"""Real targets with Gaussian noise of one fixed or learnable scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from vogn.likelihoods.base import (
    Likelihood,
    Prediction,
    at_least_float32,
    check_equal_shapes,
    check_outputs,
    diagonal_columns,
    diagonal_matrices,
    moments,
    sum_outputs,
)

LOG_TWO_PI = math.log(2 * math.pi)


@final
class Gaussian(Likelihood):
    """``y = f + noise * eps``, ``eps ~ N(0, I)``.

    Outputs: means ``(N,)`` or ``(N, ..., K)``. Targets: the same shape, finite. One loss term per vector of ``K``
    outputs: the sum over its ``K`` elements. Only :meth:`terms` and the call are differentiable in a learnable noise;
    every other method takes it as a constant.

    Args:
        noise: standard deviation in the unit of the targets, > 0, or ``"learn"``: ``log_noise`` is then a parameter,
            yielded by :meth:`parameters` for an optimizer of its own.
        initial: first value of a learnable noise, > 0. Ignored for a fixed noise.
        floor: :meth:`follow` takes a learnable noise no lower, in [0, ``initial``]. Ignored for a fixed noise.

    Raises:
        ValueError: for a noise that is not positive and finite, or a floor above it.
    """

    kind: ClassVar[str] = "gaussian"

    def __init__(self, noise: float | Literal["learn"] = 0.1, *, initial: float = 0.1, floor: float = 0.0) -> None:
        learn = isinstance(noise, str)
        if learn and noise != "learn":
            raise ValueError(f"noise={noise!r}; give a positive standard deviation or 'learn'")
        value = float(initial if learn else noise)
        if not (math.isfinite(value) and value > 0):
            name = "initial" if learn else "noise"
            raise ValueError(f"{name}={value:g}; a standard deviation must be positive and finite")
        if learn and not 0.0 <= floor <= value:
            raise ValueError(f"floor={floor:g} must be between 0 and initial={value:g}")
        self._floor = floor
        self.log_noise = nn.Parameter(torch.tensor(value).log()) if learn else None
        self._fixed = value

    @property
    def noise(self) -> float | Tensor:
        """Standard deviation: a float if fixed, a scalar tensor attached to ``log_noise`` if learnable."""
        return self._fixed if self.log_noise is None else self.log_noise.exp()

    def _constant(self) -> float | Tensor:
        return self._fixed if self.log_noise is None else self.log_noise.detach().exp()

    @torch.no_grad()
    def follow(self, outputs: Tensor, targets: Tensor, share: float = 1.0) -> None:
        """Move the square of a learnable noise towards the mean squared residual; a fixed noise stays.

        With ``share=1`` the noise is the most likely one for these outputs; with a small share, step after step, an
        average over batches. It goes down to ``floor`` at most; a noise that would become zero or is not finite stays
        as it is.

        Args:
            outputs, targets: as in the call.
            share: of these residuals in the average, in (0, 1].
        """
        if self.log_noise is None:
            return
        seen = (at_least_float32(outputs) - targets).square().mean()
        square = torch.lerp(self.log_noise.exp().square(), seen.to(self.log_noise), share)
        if bool(square.isfinite() & (square > 0)):
            self.log_noise.copy_(0.5 * square.clamp(min=self._floor**2).log())

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_shapes`."""
        check_outputs(outputs, 1, "(N,) or (N, ..., K)")
        if targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(f"targets have dtype {targets.dtype}; a real dtype is needed")
        check_equal_shapes(outputs, targets)

    def check_values(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_values`."""
        if not bool(torch.isfinite(targets).all()):
            bad = int((~torch.isfinite(targets)).sum())
            raise ValueError(f"{bad} of {targets.numel()} targets are NaN or infinite; exclude them with mask=")

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``sum_k (y_k - f_k)^2 / (2 noise^2) + log noise + log(2 pi) / 2``, ``(N, ...)``."""
        self.check_shapes(outputs, targets)
        log_noise = math.log(self._fixed) if self.log_noise is None else self.log_noise
        return sum_outputs(_element_nll(at_least_float32(outputs), targets, self.noise, log_noise))

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Targets in the shape of the outputs."""
        f = at_least_float32(outputs)
        return f + self._constant() * torch.randn(f.shape, generator=generator, dtype=f.dtype, device=f.device)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``(f - y) / noise^2``."""
        self.check_shapes(outputs, targets)
        f = at_least_float32(outputs)
        return (f - targets.to(f.dtype)) / self._constant() ** 2

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """``c_k = e_k / noise``: ``K`` columns, ``(K, *outputs.shape)``."""
        return diagonal_columns(torch.ones_like(at_least_float32(outputs)) / self._constant())

    def hessian(self, outputs: Tensor) -> Tensor:
        """``I / noise^2``, ``(N, ..., K, K)``."""
        return diagonal_matrices(torch.ones_like(at_least_float32(outputs)) / self._constant() ** 2)

    def predictive(self, output_samples: Tensor) -> Prediction:
        """Mean of the outputs, their variance over the samples plus ``noise^2``, and the outputs themselves."""
        f = at_least_float32(output_samples)
        mean, variance = moments(f)
        return mean, variance + self._constant() ** 2, f

    def nll(
        self, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """Negative log predictive density, ``(N, ...)``.

        With ``samples`` (network outputs): the mixture ``-log mean_s prod_k N(y_k | f_sk, noise^2)``. Without: a
        Gaussian with ``mean`` and ``variance`` (which includes the noise; ``None`` means the noise alone).
        """
        self.check_shapes(mean, targets)
        self.check_values(mean, targets)
        centre = at_least_float32(mean if samples is None else samples)
        scale = self._constant()
        if samples is None and variance is not None:
            scale = at_least_float32(variance).sqrt()
        log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        elements = _element_nll(centre, targets, scale, log_scale)
        joint = elements if targets.ndim == 1 else elements.sum(-1)
        return joint if samples is None else math.log(len(samples)) - (-joint).logsumexp(0)

    def interval(self, level: float, mean: Tensor, variance: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of the observations: quantiles of the mixture over the samples, by bisection;
        without samples, of a Gaussian with these moments. See :meth:`Likelihood.interval`."""
        tail = 0.5 - 0.5 * level
        half = math.sqrt(2.0) * torch.erfinv(mean.new_tensor(level)) * at_least_float32(variance).sqrt()
        if samples is None:
            return mean - half, mean + half
        scale = self._constant()
        return mixture_quantile(tail, samples, scale), mixture_quantile(1.0 - tail, samples, scale)

    def parameters(self) -> Iterator[nn.Parameter]:
        """``log_noise`` if the noise is learnable."""
        return iter(() if self.log_noise is None else (self.log_noise,))

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Likelihood.to_dict`; a learnable noise is stored with its current value."""
        if self.log_noise is None:
            return {"kind": self.kind, "noise": self._fixed}
        kept = {"floor": self._floor} if self._floor else {}
        return {"kind": self.kind, "noise": "learn", "log_noise": float(self.log_noise.detach())} | kept

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gaussian:
        """Rebuild from :meth:`to_dict`."""
        floor = float(data.get("floor", 0.0))
        likelihood = cls(data["noise"], initial=max(0.1, floor), floor=floor)
        if likelihood.log_noise is not None:
            with torch.no_grad():
                likelihood.log_noise.fill_(data["log_noise"])
        return likelihood

    def __repr__(self) -> str:
        return f"Gaussian(noise={float(self._constant()):g}{', learnable' if self.log_noise is not None else ''})"


def mixture_quantile(probability: float, centres: Tensor, scale: float | Tensor) -> Tensor:
    """Where the average of the distribution functions of ``N(centres[s], scale^2)`` is ``probability``.

    The quantile lies between the components' smallest and largest; each halving of that interval gains one bit.
    """
    offset = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(2.0 * probability - 1.0, dtype=torch.float64))) * scale
    low, high = centres.amin(0) + offset, centres.amax(0) + offset
    for _ in range(60 if centres.dtype == torch.float64 else 30):
        middle = 0.5 * (low + high)
        below = (0.5 * (1.0 + torch.erf((middle - centres) / (math.sqrt(2.0) * scale)))).mean(0) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def _element_nll(f: Tensor, targets: Tensor, noise: float | Tensor, log_noise: float | Tensor) -> Tensor:
    return 0.5 * ((targets.to(f.dtype) - f) / noise).square() + log_noise + 0.5 * LOG_TWO_PI
