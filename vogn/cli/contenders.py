"""The rows of the final table: a natural-gradient method in one of its two modes, or AdamW."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from vogn.cli.errors import UsageError
from vogn.cli.settings import Settings
from vogn.optim import METHODS
from vogn.posterior import GaussianPosterior, Posterior

DEFAULT_PRIOR_PRECISION = 1.0
"""Where neither the command line nor the method says another one."""


class Contender(Protocol):
    """How one run is trained."""

    @property
    def key(self) -> str:
        """Short name, for folders and checkpoints."""
        ...

    @property
    def label(self) -> str:
        """Name in tables."""
        ...

    def options(self, settings: Settings, ess: float) -> dict[str, Any]:
        """Keyword arguments of the optimizer."""
        ...

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        """The optimizer."""
        ...

    def sampled(self, optimizer: Any) -> AbstractContextManager[Any]:
        """The context in which forward and backward run."""
        ...

    def posterior(self, model: nn.Module, optimizer: Any) -> Posterior:
        """The distribution over weights after training."""
        ...


@dataclass(frozen=True)
class NaturalGradientContender:
    """A named method, variational or deterministic.

    Args:
        method: key of :data:`vogn.optim.METHODS`.
        variational: the mode.
    """

    method: str
    variational: bool

    @property
    def key(self) -> str:
        return f"{self.method}-{'variational' if self.variational else 'deterministic'}"

    @property
    def label(self) -> str:
        return f"{self.method}, {'variational' if self.variational else 'deterministic'}"

    def options(self, settings: Settings, ess: float) -> dict[str, Any]:
        options = dict(METHODS[self.method].defaults)
        prior = options.pop("prior_precision", DEFAULT_PRIOR_PRECISION)
        if settings.lr is not None:
            options["lr"] = settings.lr
        options["ess"] = ess
        options["weight_decay"] = (prior if settings.prior_precision is None else settings.prior_precision) / ess
        options["variational"] = self.variational
        return options

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        return METHODS[self.method].build(model, seed=seed, **options)

    def sampled(self, optimizer: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = optimizer.sampled_params()
        return context

    def posterior(self, model: nn.Module, optimizer: Any) -> Posterior:
        found: Posterior = optimizer.posterior()
        return found


@dataclass(frozen=True)
class AdamWContender:
    """``torch.optim.AdamW``, the usual choice to compare with. Its posterior is a point."""

    lr: float = 3e-3
    weight_decay: float = 1e-2

    @property
    def key(self) -> str:
        return "adamw"

    @property
    def label(self) -> str:
        return "AdamW"

    def options(self, settings: Settings, ess: float) -> dict[str, Any]:
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), **options)

    def sampled(self, optimizer: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def posterior(self, model: nn.Module, optimizer: Any) -> Posterior:
        return GaussianPosterior([], {name: parameter.detach() for name, parameter in model.named_parameters()})


def contenders(settings: Settings) -> list[Contender]:
    """The run that was asked for, then those it is compared with.

    Raises:
        UsageError: unknown method.
    """
    check_method(settings.method)
    main = NaturalGradientContender(settings.method, settings.variational)
    if not settings.compare:
        return [main]
    return [main, NaturalGradientContender(settings.method, not settings.variational), AdamWContender()]


def check_method(method: str) -> None:
    """Raise :class:`UsageError` for a method that does not exist."""
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}; allowed are {', '.join(METHODS)}")
