"""The one protocol of learning: how new labels change a posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.posterior.state import posterior_from_state, posterior_state
from vogn.predict.evaluation import device_of

ModelFactory = Callable[[], nn.Module]
Watch = Callable[[int, int, float], None]
"""Told (steps done, steps in all, loss) after every step; what it raises ends the training."""


class PosteriorMethod(ABC):
    """Makes a posterior from labelled examples, and a new one when there are more.

    After :meth:`update`, :attr:`model` and :attr:`posterior` hold what was learnt. The state is all that is needed to
    go on as if nothing had happened.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.posterior: Posterior | None = None

    @abstractmethod
    def update(
        self,
        factory: ModelFactory,
        likelihood: Likelihood,
        x: Tensor,
        y: Tensor,
        *,
        new: Tensor,
        seed: int,
        watch: Watch = lambda done, total, loss: None,
    ) -> None:
        """Learn from labelled examples.

        Args:
            factory: makes a new network; torch's generator is seeded.
            likelihood: the observation model.
            x: inputs ``(n, ...)`` of all labelled examples.
            y: their targets, in the form that the likelihood expects.
            new: rows of ``x`` that were not there in the last call, ``(m,)``.
            seed: of everything random.
            watch: see :data:`Watch`.
        """

    def describe(self) -> dict[str, Any]:
        """Settings as plain data: what a checkpoint must agree about."""
        return {"method": type(self).__name__}

    def check(self, factory: ModelFactory) -> None:  # noqa: B027
        """Raise early where a network will not do."""

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that :meth:`update` may change, for :meth:`load_state_dict`."""
        if self.model is None:
            return {}
        weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return {"model": weights, "posterior": self.posterior}

    def state_dict(self) -> dict[str, Any]:
        """The same as tensors and plain data, for files.

        Raises:
            TypeError: if the posterior cannot be stored.
        """
        state = self.snapshot()
        return state | {"posterior": posterior_state(state["posterior"])} if state else {}

    def load_state_dict(self, state: Mapping[str, Any], factory: ModelFactory) -> None:
        """Take back what :meth:`snapshot` or :meth:`state_dict` gave."""
        if not state:
            self.model = self.posterior = None
            return
        if self.model is None:
            self.model = factory()
        self.model.load_state_dict(state["model"])
        found: Any = state["posterior"]
        self.posterior = cast(Posterior, posterior_from_state(found)) if isinstance(found, Mapping) else found


class Refit(PosteriorMethod):
    """Any function that makes a posterior, called with all labels in every round.

    Args:
        fit: ``(model, likelihood, x, y)`` to a posterior; the model may be trained in place.
        warm: go on with the weights of the round before (nothing else of its posterior is used); otherwise every round
            begins with a new network.
        name: for the description in checkpoints.
    """

    def __init__(
        self, fit: Callable[[nn.Module, Likelihood, Tensor, Tensor], Posterior], *, warm: bool = False, name: str = ""
    ) -> None:
        super().__init__()
        self.fit, self.warm = fit, warm
        self.name = name or getattr(fit, "__name__", type(fit).__name__)

    def update(
        self,
        factory: ModelFactory,
        likelihood: Likelihood,
        x: Tensor,
        y: Tensor,
        *,
        new: Tensor,
        seed: int,
        watch: Watch = lambda done, total, loss: None,
    ) -> None:
        """See :meth:`PosteriorMethod.update`."""
        model = self.model if self.warm and self.model is not None else factory()
        device = device_of(model)
        with torch.enable_grad():
            posterior = self.fit(model, likelihood, x.to(device), y.to(device))
        self.model, self.posterior = model, posterior
        watch(1, 1, float("nan"))

    def describe(self) -> dict[str, Any]:
        """See :meth:`PosteriorMethod.describe`."""
        return {"method": "Refit", "fit": self.name, "warm": self.warm}
