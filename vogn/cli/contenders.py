"""The rows of the final table: a natural-gradient method in one of its two modes, or AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vogn.cli.errors import UsageError
from vogn.cli.settings import Settings
from vogn.data import epoch_batches
from vogn.optim import METHODS
from vogn.optim.blocks import without_curvature
from vogn.optim.prior_tuner import layer_groups
from vogn.posterior import GaussianPosterior


@dataclass(frozen=True)
class Recipe:
    """What the command line uses for a method where it is told nothing else.

    Args:
        prior_precision: precision of the Gaussian prior over each weight.
        temperature: of the posterior while training.
        options: further keyword arguments of the method.
        freeze_epochs: epochs after which a deterministic run measures no curvature any more (``freeze_after`` in
            steps), ``None`` for methods that always do. A variational run samples from its curvature to the end.
        evidence: whether a prior precision that was not given is chosen by the evidence while training.
    """

    prior_precision: float = 100.0
    temperature: float = 1e-3
    options: Mapping[str, Any] = field(default_factory=dict)
    freeze_epochs: int | None = None
    evidence: bool = False


_VOGN = {"lr": 0.05, "damping": 0.03}
_KRONECKER = {"lr": 0.1, "observe_every": 5}
_NEWTON = {"lr": 2.0, "initial_curvature": 0.3}

RECIPES: dict[str, Recipe] = {
    "vogn": Recipe(1000.0, 1e-3, _VOGN),
    "von": Recipe(1000.0, 1e-3, _VOGN),
    "vadam": Recipe(1000.0, 1e-3, {"lr": 3e-3}),
    "ivon": Recipe(10.0, 0.1, _NEWTON),
    "evon": Recipe(10.0, 0.1, _NEWTON),
    "kfac": Recipe(100.0, 1e-2, _KRONECKER),
    "ekfac": Recipe(100.0, 1e-2, _KRONECKER),
    "slang": Recipe(1000.0, 1e-3, {"lr": 0.1, "damping": 0.1, "rank": 2}),
    "smw": Recipe(1000.0, 1e-3, _VOGN | {"window": 64}),
    "gram_gauss_newton": Recipe(1000.0, 1e-3, _VOGN | {"window": 64, "momentum": 0.9, "ggn_samples": 1}),
    "lissa": Recipe(1000.0, 1e-3, {"lr": 0.3, "damping": 0.1, "window": 64, "depth": 10}),
    "kalman": Recipe(100.0, 1e-2, {"damping": 1e-2, "partition": "layer", "structure": {"*": "kronecker"}}),
    "skfac": Recipe(100.0, 1e-2, _KRONECKER),
    "sngd": Recipe(100.0, 1e-2, {"lr": 0.1, "damping": 0.1, "refresh_every": 10}),
    "fngd": Recipe(3000.0, 1e-3, {"lr": 0.5, "damping": 1.0}, freeze_epochs=1),
    "mfac": Recipe(1000.0, 1e-3, {"lr": 0.1, "damping": 0.1}),
    "ggt": Recipe(1000.0, 1e-3, {"lr": 1.0, "damping": 1.0}),
    "tonga": Recipe(1000.0, 1e-3, {"lr": 0.01, "damping": 0.01}),
    "seng": Recipe(1000.0, 1e-3, {"lr": 0.1, "damping": 0.1, "observe_every": 5}),
    "hylo": Recipe(1000.0, 1e-3, {"lr": 0.1, "damping": 0.1, "observe_every": 5, "rank": 0.25}),
}
"""Method to recipe: what trained image classifiers well on validation data; methods not listed use ``Recipe()``."""


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

    @property
    def samples_weights(self) -> bool:
        """Whether training perturbs the weights."""
        ...

    @property
    def knows_evidence(self) -> bool:
        """Whether its groups have priors of which the evidence can be asked."""
        ...

    @property
    def tuned(self) -> bool:
        """Whether these priors are chosen by the evidence."""
        ...

    def options(self, settings: Settings, examples: int, augmentation_factor: float) -> dict[str, Any]:
        """Keyword arguments of the optimizer.

        Args:
            settings: what was asked for.
            examples: size of the training part.
            augmentation_factor: default of the data.
        """
        ...

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        """The optimizer."""
        ...

    def sampled(self, optimizer: Any, indices: Tensor) -> AbstractContextManager[Any]:
        """The context in which forward and backward run on the examples at these places of the training part."""
        ...

    def posterior(self, model: nn.Module, optimizer: Any) -> GaussianPosterior:
        """The distribution over weights after training."""
        ...


@dataclass(frozen=True)
class NaturalGradientContender:
    """A named method, variational or deterministic.

    Args:
        method: key of :data:`vogn.optim.METHODS`.
        variational: the mode.
        recipe: what it is given where the command line says nothing; ``None`` takes that of :data:`RECIPES`.
        tuned: whether the priors of its layers are chosen by the evidence while training.
    """

    method: str
    variational: bool
    recipe: Recipe | None = None
    tuned: bool = False

    @property
    def key(self) -> str:
        return f"{self.method}-{'variational' if self.variational else 'deterministic'}"

    @property
    def label(self) -> str:
        return f"{self.method}, {'variational' if self.variational else 'deterministic'}"

    @property
    def samples_weights(self) -> bool:
        return self.variational

    @property
    def knows_evidence(self) -> bool:
        return not METHODS[self.method].sets_groups

    def options(self, settings: Settings, examples: int, augmentation_factor: float) -> dict[str, Any]:
        recipe = RECIPES.get(self.method, Recipe()) if self.recipe is None else self.recipe
        ess = settings.effective_sample_size(
            examples, augmentation_factor=augmentation_factor, temperature=recipe.temperature
        )
        prior_precision = recipe.prior_precision if settings.prior_precision is None else settings.prior_precision
        _check_prior(ess, prior_precision)
        options = dict(recipe.options)
        if settings.lr is not None:
            options["lr"] = settings.lr
        if settings.damping is not None:
            options["damping"] = settings.damping
        if recipe.freeze_epochs is not None and not self.variational:
            steps = len(epoch_batches(examples, settings.batch_size, settings.seed, 0))
            options["freeze_after"] = recipe.freeze_epochs * steps
        return options | {"ess": ess, "weight_decay": prior_precision / ess, "variational": self.variational}

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        info = METHODS[self.method]
        layers = {"groups": layer_groups(model)} if self.tuned and info.needs_model else {}
        return info.build(model, seed=seed, **options, **layers)

    def sampled(self, optimizer: Any, indices: Tensor) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = optimizer.sampled_params(indices)
        return context

    def posterior(self, model: nn.Module, optimizer: Any) -> GaussianPosterior:
        if any(without_curvature(optimizer, group) for group in optimizer.param_groups):
            return _point(model)
        found: GaussianPosterior = optimizer.posterior()
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

    @property
    def samples_weights(self) -> bool:
        return False

    @property
    def knows_evidence(self) -> bool:
        return False

    @property
    def tuned(self) -> bool:
        return False

    def options(self, settings: Settings, examples: int, augmentation_factor: float) -> dict[str, Any]:
        return {"lr": self.lr, "weight_decay": self.weight_decay}

    def build(self, model: nn.Module, options: dict[str, Any], seed: int) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), **options)

    def sampled(self, optimizer: Any, indices: Tensor) -> AbstractContextManager[Any]:
        return nullcontext()

    def posterior(self, model: nn.Module, optimizer: Any) -> GaussianPosterior:
        return _point(model)


def _check_prior(ess: float, prior_precision: float) -> None:
    """The effective sample size is finite, and single precision can hold the weight decay."""
    remedy = "which is too large; see --ess, --temperature, --prior-precision"
    if math.isinf(ess):
        raise UsageError(f"the effective sample size is {ess:g}, {remedy}")
    if prior_precision / ess > torch.finfo(torch.float32).max:
        raise UsageError(f"prior precision / effective sample size is {prior_precision / ess:g}, {remedy}")


def _point(model: nn.Module) -> GaussianPosterior:
    """The weights as they are."""
    return GaussianPosterior([], {name: parameter.detach() for name, parameter in model.named_parameters()})


def contender_of(settings: Settings, recipe: Recipe, variational: bool) -> NaturalGradientContender:
    """The method of the settings in one of its modes."""
    tuned = recipe.evidence and settings.prior_precision is None and not METHODS[settings.method].sets_groups
    return NaturalGradientContender(settings.method, variational, recipe, tuned)


def contenders(settings: Settings, recipe_of: Callable[[str, bool], Recipe]) -> list[Contender]:
    """The run that was asked for, then those it is compared with.

    Args:
        settings: of the run.
        recipe_of: from a method and whether it is variational to its recipe.

    Raises:
        UsageError: unknown method.
    """
    check_method(settings.method)
    modes = [settings.variational, not settings.variational] if settings.compare else [settings.variational]
    found: list[Contender] = [contender_of(settings, recipe_of(settings.method, mode), mode) for mode in modes]
    return [*found, AdamWContender()] if settings.compare else found


def check_method(method: str) -> None:
    """Raise :class:`UsageError` for a method that does not exist."""
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}; allowed are {', '.join(METHODS)}")
