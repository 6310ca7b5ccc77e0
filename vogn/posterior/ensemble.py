"""Posteriors that are finitely many sets of weights: one, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior.files import Content, SavedPosterior
from vogn.posterior.jacobians import projections

Weights = nn.Module | Mapping[str, Tensor]
"""A model, or its parameters by name."""
KnownLikelihood = Likelihood | Mapping[str, Any] | None
"""A likelihood, its plain description, or nothing."""


class Ensemble(SavedPosterior):
    """Equally likely sets of weights, such as those of networks trained from different starts (a deep ensemble).

    Draw ``k`` is member ``k`` modulo their number, whatever the seed: ``predict(..., samples=len(ensemble))`` uses each
    member once. Networks with batch norm need ``predict(..., calibration=)``: a member's running statistics are not
    part of its weights.

    Args:
        members: models, or ``{name: shape}``, at least one; all with the same names and shapes.
        likelihood: what the networks were trained with, so that prediction needs nothing else: one of
            :mod:`vogn.likelihoods` or its plain description; ``None`` if unknown.

    Raises:
        ValueError: if there is no member or no parameter, or the members' parameters differ in names or shapes.

    Example:
        >>> import torch, vogn
        >>> networks = [torch.nn.Linear(2, 3) for _ in range(5)]
        >>> ensemble = vogn.Ensemble(networks, likelihood=vogn.likelihoods.Categorical())
        >>> tuple(vogn.predict(networks[0], ensemble, torch.zeros(4, 2), samples=5).samples.shape)
        (5, 4, 3)

    Source: Lakshminarayanan, Pritzel, Blundell (2017), "Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles".
    """

    FORMAT: ClassVar[str] = "vogn.posterior.ensemble"

    def __init__(self, members: Sequence[Weights], *, likelihood: KnownLikelihood = None) -> None:
        named = [parameters_of(member) for member in members]
        if not named:
            raise ValueError("an ensemble needs at least one member")
        for k, member in enumerate(named[1:], start=1):
            check_same_parameters(f"member {k}", member, "member 0", named[0])
        self.likelihood = described(likelihood)
        self._members = {name: torch.stack([member[name] for member in named]) for name in named[0]}

    def __len__(self) -> int:
        return len(next(iter(self._members.values())))

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        """Members ``start ... start + n - 1``, modulo their number; ``{name: (n, *shape)}``.

        Raises:
            ValueError: if ``n < 1`` or ``start < 0``.
        """
        check_draws(n, start)
        chosen = [k % len(self) for k in range(start, start + n)]
        return {name: members[chosen] for name, members in self._members.items()}

    def mean(self) -> dict[str, Tensor]:
        """The average weights, which need not be a good network; ``{name: shape}``."""
        return {name: members.mean(0) for name, members in self._members.items()}

    def variance(self) -> dict[str, Tensor]:
        """Variances over the members, ``{name: shape}``."""
        return {name: members.var(0, correction=0) for name, members in self._members.items()}

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T`` with the members' covariance; ``{name: (B, K, *shape)}`` to ``(B, K, K)``."""
        deviations = {name: members - members.mean(0) for name, members in self._members.items()}
        along = projections(jacobian, deviations)
        return along @ along.transpose(-1, -2) / len(self)

    def log_prob(self, params: Mapping[str, Tensor]) -> NoReturn:
        """Finitely many sets of weights have no density.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_DENSITY)

    def entropy(self) -> NoReturn:
        """See :meth:`log_prob`."""
        raise NotImplementedError(_NO_DENSITY)

    def content(self) -> Content:
        """See :meth:`SavedPosterior.content`."""
        description = {"names": list(self._members), "likelihood": self.likelihood}
        return description, {f"members/{name}": tensor for name, tensor in self._members.items()}

    @classmethod
    def from_content(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ensemble:
        """See :meth:`SavedPosterior.from_content`."""
        stacked = {name: tensors[f"members/{name}"] for name in description["names"]}
        count = min(len(tensor) for tensor in stacked.values())
        members = [{name: tensor[k] for name, tensor in stacked.items()} for k in range(count)]
        return cls(members, likelihood=description["likelihood"])


class Point(Ensemble):
    """One set of weights: a network without any uncertainty about them, behind the protocol of the others.

    Args:
        weights: a model, or ``{name: shape}``.
        likelihood: see :class:`Ensemble`.
    """

    FORMAT: ClassVar[str] = "vogn.posterior.point"

    def __init__(self, weights: Weights, *, likelihood: KnownLikelihood = None) -> None:
        super().__init__([weights], likelihood=likelihood)

    @classmethod
    def from_content(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Point:
        """See :meth:`SavedPosterior.from_content`."""
        weights = {name: tensors[f"members/{name}"][0] for name in description["names"]}
        return cls(weights, likelihood=description["likelihood"])


_NO_DENSITY = (
    "finitely many sets of weights have no density; use a posterior that spreads (vogn.GaussianPosterior, vogn.SWAG, "
    "vogn.Mixture)"
)


def described(likelihood: KnownLikelihood) -> dict[str, Any] | None:
    """The plain description of a likelihood, which files can hold."""
    if likelihood is None:
        return None
    return likelihood.to_dict() if isinstance(likelihood, Likelihood) else dict(likelihood)


def parameters_of(weights: Weights) -> dict[str, Tensor]:
    """Copies of parameters by name, half precision as float32.

    Raises:
        ValueError: if there are none.
    """
    named = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else dict(weights)
    if not named:
        raise ValueError("a posterior over weights needs at least one parameter, got none")
    return {
        name: tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        for name, tensor in named.items()
    }


def check_same_parameters(who: str, weights: Mapping[str, Tensor], whom: str, others: Mapping[str, Tensor]) -> None:
    """Names and shapes agree.

    Raises:
        ValueError: naming what differs.
    """
    if weights.keys() != others.keys():
        odd = sorted(weights.keys() ^ others.keys())
        raise ValueError(f"{who} and {whom} do not have the same parameters: {odd[:5]} are in one of them only")
    for name, tensor in weights.items():
        if tensor.shape != others[name].shape:
            raise ValueError(
                f"parameter {name!r} has shape {tuple(tensor.shape)} in {who} and {tuple(others[name].shape)} in {whom}"
            )


def check_draws(n: int, start: int) -> None:
    """The arguments of :meth:`Posterior.sample` are in range.

    Raises:
        ValueError: if not.
    """
    if n < 1 or start < 0:
        raise ValueError(f"sample needs n >= 1 and start >= 0, got n={n} and start={start}")
