"""A posterior some of whose weights are zero for sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vogn.posterior import Posterior


class PrunedPosterior:
    """Another posterior with some weights at exactly zero, without variance.

    The other weights keep their distribution. For a diagonal posterior that is its condition on the zeros; correlated
    weights are not adjusted to what their neighbours lose.

    Args:
        posterior: any.
        keep: ``{name: booleans of the parameter's shape}``; parameters that are missing are kept.

    Raises:
        ValueError: if a name or shape does not fit.
    """

    def __init__(self, posterior: Posterior, keep: Mapping[str, Tensor]) -> None:
        means = posterior.mean()
        for name, mask in keep.items():
            if name not in means or means[name].shape != mask.shape or mask.dtype != torch.bool:
                raise ValueError(f"keep[{name!r}] must hold booleans in the shape of a parameter of the posterior")
        self.posterior = posterior
        self.keep = {name: keep.get(name, torch.ones_like(mean, dtype=torch.bool)) for name, mean in means.items()}

    @property
    def likelihood(self) -> Any:
        """That of the posterior, or ``None``."""
        return getattr(self.posterior, "likelihood", None)

    @property
    def sparsity(self) -> float:
        """Share of all weights that are zero, in [0, 1]."""
        total = sum(mask.numel() for mask in self.keep.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.keep.values()) / total

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        """The posterior's draws with zeros, ``{name: (n, *shape)}``."""
        return self._masked(self.posterior.sample(n, seed=seed, start=start))

    def mean(self) -> dict[str, Tensor]:
        """The mean with zeros, ``{name: shape}``."""
        return self._masked(self.posterior.mean())

    def variance(self) -> dict[str, Tensor]:
        """Marginal variances with zeros, ``{name: shape}``."""
        return self._masked(self.posterior.variance())

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """``J Sigma J^T`` without the columns of weights that are zero; ``{name: (B, K, *shape)}`` to ``(B, K, K)``."""
        return self.posterior.functional_variance(self._masked(jacobian))

    def log_prob(self, params: Mapping[str, Tensor]) -> NoReturn:
        """There is no density: some weights are zero for sure.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a posterior with weights that are zero for sure has no density")

    def entropy(self) -> NoReturn:
        """See :meth:`log_prob`."""
        raise NotImplementedError("a posterior with weights that are zero for sure has no density")

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Set the model's parameters to :meth:`mean`, zeros included."""
        parameters = dict(model.named_parameters())
        for name, value in self.mean().items():
            parameters[name].copy_(value)

    def _masked(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.where(self.keep[name], tensor, tensor.new_zeros(())) if name in self.keep else tensor
            for name, tensor in tensors.items()
        }
