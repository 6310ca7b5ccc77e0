"""Weight samples that are drawn once and used for every piece of a pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

MOST_BYTES = 1 << 28
"""Weight samples are kept up to this size; larger ones are drawn again for every piece."""


class DrawnWeights:
    """A posterior that remembers its draws; everything else is the posterior's own.

    Draw ``k`` of a seed is one set of weights, remembered or not: this saves time only.

    Args:
        posterior: any :class:`vogn.posterior.Posterior`.
    """

    def __init__(self, posterior: Any) -> None:
        self._posterior = posterior
        self._kept: dict[Any, dict[str, Tensor]] = {}
        self._bytes = 0

    def sample(self, n: int, *, seed: int = 0, start: int = 0, **options: Any) -> dict[str, Tensor]:
        """See :meth:`vogn.posterior.Posterior.sample`."""
        key = (n, seed, start, *sorted(options.items()))
        if key in self._kept:
            return self._kept[key]
        found: dict[str, Tensor] = self._posterior.sample(n, seed=seed, start=start, **options)
        size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        if self._bytes + size <= MOST_BYTES:
            self._kept[key] = found
            self._bytes += size
        return found

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`vogn.posterior.Posterior.functional_variance`."""
        found: Tensor = self._posterior.functional_variance(jacobian)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._posterior, name)
