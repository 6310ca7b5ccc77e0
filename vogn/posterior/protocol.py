"""What everything above this floor may ask of a distribution over weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Posterior(Protocol):
    """A distribution over named parameters. Prediction needs :meth:`sample` and :meth:`mean` only.

    Three attributes are optional. ``likelihood``: a likelihood, or its description, so that prediction needs no other.
    ``drawing(model, seed=, draw=)``: a context around the forward passes of a draw, for what a draw is beside its
    weights (:class:`vogn.MCDropout`). ``noises``: the values that :meth:`sample` takes as ``noise=``, if it takes any
    (:class:`vogn.GaussianPosterior`).
    """

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        """Draw weights.

        Args:
            n: number of draws, >= 1.
            seed: draw ``k`` of a seed is one fixed set of weights.
            start: index of the first draw, >= 0: ``sample(1, start=k)`` is the last draw of ``sample(k + 1)``.

        Returns:
            ``{name: (n, *shape)}``.
        """
        ...

    def mean(self) -> dict[str, Tensor]:
        """``{name: shape}``."""
        ...

    def variance(self) -> dict[str, Tensor]:
        """Marginal variances, ``{name: shape}``."""
        ...

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T`` for Jacobians ``{name: (B, K, *shape)}``; returns ``(B, K, K)``."""
        ...

    def log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """Log density at ``{name: (*batch, *shape)}``; returns ``batch``."""
        ...

    def entropy(self) -> Tensor:
        """Differential entropy in nats, a scalar."""
        ...
