"""SWAG: a Gaussian fitted to the weights along a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.linalg import low_rank
from vogn.linalg.noise import normal
from vogn.posterior.ensemble import (
    KnownLikelihood,
    Weights,
    check_draws,
    check_same_parameters,
    described,
    parameters_of,
)
from vogn.posterior.files import Content, SavedPosterior
from vogn.posterior.jacobians import projections


class SWAG(SavedPosterior):
    """The Gaussian ``N(mean, (diag(s) + D D^T / (K - 1)) / 2)`` of weights along a run with a high learning rate.

    ``s`` holds the variances of the weights that were collected, the ``K`` columns of ``D`` the last ones' deviations
    from the running mean. Collect once per epoch at the end of training, with any optimizer::

        swag = vogn.SWAG(rank=20, likelihood=likelihood)
        for epoch in range(epochs):
            train_one_epoch()
            if epoch >= epochs // 2:
                swag.collect(model)

    Networks with batch norm need ``predict(..., calibration=)``.

    Args:
        rank: ``K``, number of deviations that are kept, >= 2.
        scale: factor on the covariance, > 0.
        variance_floor: smallest variance of a weight, > 0.
        likelihood: what the network is trained with, so that prediction needs nothing else: one of
            :mod:`vogn.likelihoods` or its plain description; ``None`` if unknown.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> import torch, vogn
        >>> model, swag = torch.nn.Linear(2, 1), vogn.SWAG(rank=3)
        >>> for epoch in range(5):
        ...     with torch.no_grad():
        ...         model.weight += torch.randn(1, 2)
        ...     swag.collect(model)
        >>> swag.collected, tuple(swag.sample(8)["weight"].shape)
        (5, (8, 1, 2))

    Source: Maddox et al. (2019), "A Simple Baseline for Bayesian Uncertainty in Deep Learning", Algorithm 1.
    """

    FORMAT: ClassVar[str] = "vogn.posterior.swag"

    def __init__(
        self,
        rank: int = 20,
        *,
        scale: float = 1.0,
        variance_floor: float = 1e-30,
        likelihood: KnownLikelihood = None,
    ) -> None:
        if rank < 2:
            raise ValueError(f"rank={rank} must be at least 2: the covariance divides by rank - 1")
        for name, value in (("scale", scale), ("variance_floor", variance_floor)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be a finite number > 0")
        self.rank, self.scale, self.variance_floor = rank, scale, variance_floor
        self.likelihood = described(likelihood)
        self.collected = 0
        """Number of sets of weights seen."""
        self._mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._deviations: dict[str, list[Tensor]] = {}

    def collect(self, weights: Weights) -> None:
        """One more set of weights.

        Args:
            weights: a model, or ``{name: shape}``.

        Raises:
            ValueError: if its parameters are not those of the first one, not finite, or there are none.
        """
        named = parameters_of(weights)
        for name, tensor in named.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"parameter {name!r} holds NaN or infinity; it was not collected")
        if not self.collected:
            self._mean = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
            self._squares = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
            self._deviations = {name: [] for name in named}
        check_same_parameters("what is collected now", named, "what was collected before", self._mean)
        self.collected += 1
        for name, tensor in named.items():
            before = tensor - self._mean[name]
            self._mean[name] = self._mean[name] + before / self.collected
            after = tensor - self._mean[name]
            self._squares[name] = self._squares[name] + before * after  # the sum of squared deviations, by Welford
            self._deviations[name] = [*self._deviations[name], after][-self.rank :]

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        """Draw weights, ``{name: (n, *shape)}``; draw ``k`` of a seed is one fixed set of weights.

        Raises:
            ValueError: if ``n < 1`` or ``start < 0``, or fewer than two sets of weights were collected.
        """
        check_draws(n, start)
        self._require_spread()
        columns = len(next(iter(self._deviations.values())))
        out = {}
        shared = self._noise("columns", (columns,), n, seed, start)
        for name, mean in self._mean.items():
            own = self._noise(f"weights {name}", tuple(mean.shape), n, seed, start).to(mean)
            deviation = own * self._diagonal(name).sqrt() + torch.tensordot(shared.to(mean), self._columns(name), 1)
            out[name] = mean + deviation
        return out

    def mean(self) -> dict[str, Tensor]:
        """The average of the weights that were collected, ``{name: shape}``."""
        self._require_spread()
        return {name: mean.clone() for name, mean in self._mean.items()}

    def variance(self) -> dict[str, Tensor]:
        """Marginal variances, ``{name: shape}``."""
        self._require_spread()
        return {name: self._diagonal(name) + self._columns(name).square().sum(0) for name in self._mean}

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T``; ``{name: (B, K, *shape)}`` to ``(B, K, K)``.

        Raises:
            ValueError: if a parameter is missing or has another shape.
        """
        self._require_spread()
        along = projections(jacobian, {name: self._columns(name) for name in self._mean})
        total = along @ along.transpose(-1, -2)
        for name, mean in self._mean.items():
            rows = jacobian[name].to(mean).reshape(*along.shape[:2], -1)
            total = total + (rows * self._diagonal(name).flatten()) @ rows.transpose(-1, -2)
        return total

    def log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """Log density; ``{name: (*batch, *shape)}`` to ``batch``.

        Raises:
            ValueError: if a parameter is missing.
        """
        self._require_spread()
        parts = []
        for name, mean in self._mean.items():
            if name not in params:
                raise ValueError(f"parameter {name!r} is missing; got {sorted(params)}")
            difference = params[name].to(mean) - mean
            parts.append(difference.flatten(difference.ndim - mean.ndim) if mean.ndim else difference.unsqueeze(-1))
        x = torch.cat(parts, -1)
        flat = x.reshape(-1, x.shape[-1])
        d, u = self._flat()
        quadratic = (flat * low_rank.solve(d, u, flat)).sum(-1).reshape(x.shape[:-1])
        return -0.5 * (quadratic + low_rank.logdet(d, u) + x.shape[-1] * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        """``0.5 (D (1 + log 2 pi) + log det Sigma)`` in nats, a scalar."""
        self._require_spread()
        d, u = self._flat()
        return 0.5 * (len(d) * (1 + math.log(2 * math.pi)) + low_rank.logdet(d, u))

    def content(self) -> Content:
        """See :meth:`SavedPosterior.content`."""
        self._require_spread()
        description = {
            "names": list(self._mean),
            "rank": self.rank,
            "scale": self.scale,
            "variance_floor": self.variance_floor,
            "collected": self.collected,
            "likelihood": self.likelihood,
        }
        tensors = {f"mean/{name}": mean for name, mean in self._mean.items()}
        tensors |= {f"squares/{name}": squares for name, squares in self._squares.items()}
        tensors |= {f"deviations/{name}": torch.stack(columns) for name, columns in self._deviations.items()}
        return description, tensors

    @classmethod
    def from_content(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SWAG:
        """See :meth:`SavedPosterior.from_content`; more weights may be collected."""
        swag = cls(
            description["rank"],
            scale=description["scale"],
            variance_floor=description["variance_floor"],
            likelihood=description["likelihood"],
        )
        swag.collected = int(description["collected"])
        names = description["names"]
        swag._mean = {name: tensors[f"mean/{name}"] for name in names}
        swag._squares = {name: tensors[f"squares/{name}"] for name in names}
        swag._deviations = {name: list(tensors[f"deviations/{name}"]) for name in names}
        return swag

    def _require_spread(self) -> None:
        if self.collected < 2:
            raise ValueError(
                f"SWAG has collected {self.collected} sets of weights and needs at least two for a covariance: call "
                "collect(model) once per epoch at the end of training"
            )

    def _diagonal(self, name: str) -> Tensor:
        """The elementwise part of the covariance."""
        variance = (self._squares[name] / self.collected).clamp_min(self.variance_floor)
        return 0.5 * self.scale * variance

    def _columns(self, name: str) -> Tensor:
        """``U^T``, ``(K, *shape)``: the covariance's other part is ``U U^T``."""
        deviations = torch.stack(self._deviations[name])
        return deviations * math.sqrt(0.5 * self.scale / max(1, len(deviations) - 1))

    def _flat(self) -> tuple[Tensor, Tensor]:
        """Both parts over all parameters, ``(D,)`` and ``(D, K)``, in double precision."""
        d = torch.cat([self._diagonal(name).flatten() for name in self._mean]).double()
        return d, torch.cat([(c := self._columns(name)).reshape(len(c), -1) for name in self._mean], 1).T.double()

    def _noise(self, stream: str, shape: tuple[int, ...], n: int, seed: int, start: int) -> Tensor:
        draws = [normal(shape, seed=seed, stream="swag", step=0, sample=start + k, name=stream) for k in range(n)]
        return torch.stack(draws)
