"""Mixtures of posteriors: several runs, or several modes of one posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor

from vogn.linalg.noise import generator
from vogn.posterior.ensemble import check_draws, check_same_parameters
from vogn.posterior.files import Content, SavedPosterior
from vogn.posterior.jacobians import projections

if TYPE_CHECKING:
    from vogn.posterior.protocol import Posterior

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class Mixture(SavedPosterior):
    """``sum_i w_i q_i``: for example the Gaussian posteriors of several runs from different starts.

    Which component a draw comes from follows a golden-ratio sequence: among any first draws of a seed every component
    is about as frequent as its weight. A component that is a mixture itself is replaced by its components. Networks
    with batch norm need ``predict(..., calibration=)``.

    Args:
        components: posteriors over the same parameters, at least one.
        weights: one for each component, >= 0, not all zero; they are divided by their sum. ``None`` weighs all alike.

    Raises:
        ValueError: if the components' parameters differ, the weights do not fit, or a component draws more than weights
            (:class:`vogn.MCDropout`).

    Example:
        >>> import torch, vogn
        >>> runs = [vogn.Point({"w": torch.tensor([k])}) for k in (0.0, 1.0)]
        >>> float(vogn.Mixture(runs, weights=[3, 1]).mean()["w"])
        0.25

    Source: Shen et al. (2024), "Variational Learning is Effective for Large Deep Networks", multi-IVON.
    """

    FORMAT: ClassVar[str] = "vogn.posterior.mixture"

    def __init__(self, components: Sequence[Posterior], weights: Sequence[float] | None = None) -> None:
        parts = tuple(components)
        if not parts:
            raise ValueError("a mixture needs at least one component")
        if any(hasattr(component, "drawing") for component in parts):
            raise ValueError("a mixture draws weights, and dropout masks are none: average the predictions instead")
        given = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(parts):
            raise ValueError(f"{len(given)} weights for {len(parts)} components")
        if not all(weight >= 0.0 and math.isfinite(weight) for weight in given) or not sum(given) > 0.0:
            raise ValueError(f"weights={given} must be finite numbers >= 0, not all of them zero")
        # the sequence inside a component would follow the one that chooses it, and miss some of its parts
        flat = [pair for part, weight in zip(parts, given, strict=True) for pair in _parts(part, weight / sum(given))]
        self.components: tuple[Posterior, ...] = tuple(part for part, _ in flat)
        self.weights = tuple(weight for _, weight in flat)
        self._means = [component.mean() for component in self.components]
        for k, mean in enumerate(self._means[1:], start=1):
            check_same_parameters(f"component {k}", mean, "component 0", self._means[0])

    @property
    def likelihood(self) -> Any:
        """That of the first component that knows one."""
        found = (getattr(component, "likelihood", None) for component in self.components)
        return next((likelihood for likelihood in found if likelihood is not None), None)

    def component_of(self, draw: int, *, seed: int = 0) -> int:
        """Which component draw ``draw`` of a seed comes from."""
        source = generator(seed=seed, stream="mixture", step=0, sample=0)
        offset = float(torch.rand((), generator=source, dtype=torch.float64))
        place = (offset + draw * GOLDEN) % 1.0
        total = 0.0
        for k, weight in enumerate(self.weights):
            total += weight
            if place < total:
                return k
        return max(k for k, weight in enumerate(self.weights) if weight > 0.0)

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        """Draw weights, ``{name: (n, *shape)}``; draw ``k`` of a seed is one fixed set of weights.

        Raises:
            ValueError: if ``n < 1`` or ``start < 0``.
        """
        check_draws(n, start)
        chosen = [(k, self.components[self.component_of(k, seed=seed)]) for k in range(start, start + n)]
        draws = [component.sample(1, seed=seed, start=k) for k, component in chosen]
        return {name: torch.cat([draw[name] for draw in draws]) for name in draws[0]}

    def mean(self) -> dict[str, Tensor]:
        """The average of the components' means, which need not be a good network; ``{name: shape}``."""
        pairs = list(zip(self.weights, self._means, strict=True))
        return {name: sum_of([weight * mean[name] for weight, mean in pairs]) for name in self._means[0]}

    def variance(self) -> dict[str, Tensor]:
        """Marginal variances by the law of total variance, ``{name: shape}``."""
        centre = self.mean()
        within = [component.variance() for component in self.components]
        return {
            name: sum_of(
                [
                    weight * (variance[name] + (mean[name] - middle).square())
                    for weight, variance, mean in zip(self.weights, within, self._means, strict=True)
                ]
            )
            for name, middle in centre.items()
        }

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T`` with the mixture's covariance; ``{name: (B, K, *shape)}`` to ``(B, K, K)``."""
        centre = self.mean()
        deviations = {
            name: torch.stack([mean[name] - middle for mean in self._means]) for name, middle in centre.items()
        }
        along = projections(jacobian, deviations)
        between = (along * along.new_tensor(self.weights)) @ along.transpose(-1, -2)
        within = [
            weight * component.functional_variance(jacobian)
            for weight, component in zip(self.weights, self.components, strict=True)
        ]
        return between + sum_of(within)

    def log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        """Log density; ``{name: (*batch, *shape)}`` to ``batch``.

        Raises:
            NotImplementedError: if a component has no density.
        """
        logs = [component.log_prob(params) for component in self.components]
        weights = logs[0].new_tensor(self.weights).log()
        return torch.stack([log + weight for log, weight in zip(logs, weights, strict=True)]).logsumexp(0)

    def entropy(self) -> NoReturn:
        """The entropy of a mixture has no closed form.

        Raises:
            NotImplementedError: always; it says how to estimate it.
        """
        raise NotImplementedError(
            "the entropy of a mixture has no closed form; estimate it with -mixture.log_prob(mixture.sample(n)).mean()"
        )

    def content(self) -> Content:
        """See :meth:`SavedPosterior.content`.

        Raises:
            TypeError: naming a component that cannot be saved.
        """
        parts, tensors = [], {}
        for k, component in enumerate(self.components):
            if not isinstance(component, SavedPosterior):
                raise TypeError(f"component {k}, a {type(component).__name__}, cannot be saved")
            description, own = component.content()
            parts.append({"format": component.FORMAT, "description": description})
            tensors.update({f"{k}/{key}": tensor for key, tensor in own.items()})
        return {"weights": list(self.weights), "components": parts}, tensors

    @classmethod
    def from_content(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mixture:
        """See :meth:`SavedPosterior.from_content`."""
        from vogn.posterior.loading import KINDS  # which lists this class

        components: list[Any] = []
        for k, part in enumerate(description["components"]):
            own = {key.removeprefix(f"{k}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{k}/")}
            components.append(KINDS[part["format"]].from_content(part["description"], own))
        return cls(components, description["weights"])


def _parts(component: Posterior, weight: float) -> list[tuple[Posterior, float]]:
    """What is to be mixed for a component of this weight."""
    if not isinstance(component, Mixture):
        return [(component, weight)]
    return [(part, weight * own) for part, own in zip(component.components, component.weights, strict=True)]


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of at least one tensor."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total
