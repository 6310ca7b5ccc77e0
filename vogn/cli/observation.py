"""The likelihood of a run, and what of it changes while the run goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.optim.evidence_tuning import (
    FIRST_NOISE,
    POINT_TUNINGS,
    TUNINGS,
    FollowedNoise,
    noise_inflation,
    tune_by_evidence,
)

if TYPE_CHECKING:
    from vogn.cli.session import Session

_WAIT = 0.1
"""Share of a run before the noise is learned."""


class Observation:
    """A likelihood that stays as it is.

    Args:
        likelihood: of the targets that the network is trained on.

    Attributes:
        likelihood: the one that is reported and predicts.
        training: the one of the next step, which may be another one for a while.
        remedy: what else to do about a run that diverges, after the advice for all runs; usually empty.
    """

    remedy = ""

    def __init__(self, likelihood: Likelihood | None = None) -> None:
        self.likelihood: Likelihood = Categorical() if likelihood is None else likelihood
        self.training: Likelihood = self.likelihood

    @property
    def searching(self) -> Likelihood:
        """The one of short runs from the present state, which follow a learnable noise themselves."""
        return self.training

    def before_step(self, session: Session, step: int, total: int) -> None:
        """Called before step number ``step`` (from 0) of ``total``."""

    def after_step(self, outputs: Tensor, targets: Tensor, step: int, total: int) -> None:
        """Called after it, with the outputs that it saw."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, beside the network and the optimizer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`.

        Raises:
            KeyError, TypeError, ValueError: if it is no such state.
        """


class RealObservation(Observation):
    """Gaussian noise that follows the residuals, and priors by the evidence, as in :class:`vogn.sklearn.VOGNRegressor`.

    A fixed noise far below the residuals would make the likelihood too sharp for the first steps: they take the noise
    that follows the residuals, until it has come down to the fixed one.

    Args:
        likelihood: of standardised targets.
    """

    likelihood: Gaussian
    training: Gaussian

    def __init__(self, likelihood: Gaussian) -> None:
        super().__init__(likelihood)
        self.noise = FollowedNoise(likelihood)
        if likelihood.log_noise is None:
            self.remedy = ", or raise --noise"
            self._train_with(FIRST_NOISE)

    @property
    def searching(self) -> Likelihood:
        """See :class:`Observation`. Short runs must come down to a fixed noise too, whatever is compared there."""
        if self.training is self.likelihood:
            return self.training
        return Gaussian("learn", initial=float(self.training.noise), floor=float(self.likelihood.noise))

    def before_step(self, session: Session, step: int, total: int) -> None:
        """Ask the evidence at some steps: for priors that were not given, and for what the network has fitted."""
        contender = session.contender
        learns = self.likelihood.log_noise is not None
        if not contender.knows_evidence or not (contender.tuned or (learns and not contender.samples_weights)):
            return
        shares = TUNINGS if contender.samples_weights else POINT_TUNINGS
        if step not in {max(1, round(total * share)) for share in shares}:
            return
        x, y = session.data.train.x.to(session.device), session.data.train.y.to(session.device)
        fitted = tune_by_evidence(
            session.optimizer,  # type: ignore[arg-type]
            session.model,
            self.training,
            x,
            y,
            size=contender.evidence_size(session.settings, len(y), session.data.augmentation_factor),
            tuned=contender.tuned,
            seed=session.settings.seed,
        )
        if not contender.samples_weights:
            self.noise.inflation = noise_inflation(y.numel(), fitted)

    def after_step(self, outputs: Tensor, targets: Tensor, step: int, total: int) -> None:
        """Let the noise follow, after a tenth of the run."""
        write = step >= _WAIT * total
        self.noise.follow(outputs, targets, write=write)
        if write and self.training is not self.likelihood:
            assert self.noise.average is not None
            followed = (self.noise.inflation * self.noise.average) ** 0.5
            if math.isfinite(followed):  # else the next loss will tell
                self._train_with(followed)

    def _train_with(self, noise: float) -> None:
        """A noise above the fixed one, or the fixed one from now on."""
        fixed = float(self.likelihood.noise)
        self.training = Gaussian(noise) if noise > fixed else self.likelihood

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Observation`."""
        return {"noise": self.noise.state_dict() | {"training": self.training.to_dict()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Observation`."""
        self.noise.load_state_dict(state["noise"])
        if self.likelihood.log_noise is None:
            self._train_with(float(state["noise"]["training"]["noise"]))
