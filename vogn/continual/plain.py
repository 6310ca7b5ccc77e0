"""Training one task after the other, and nothing else: the lower bound."""

from __future__ import annotations

from torch import Tensor

from vogn.continual.method import ContinualMethod, Loader


class FineTuning(ContinualMethod):
    """Keeps nothing of earlier tasks.

    Args:
        model, likelihood, optimizer: see :class:`ContinualMethod`.
    """

    def penalty(self) -> Tensor:
        """Zero."""
        return self.zero()

    def after_task(self, loader: Loader) -> None:
        """Nothing is kept."""
