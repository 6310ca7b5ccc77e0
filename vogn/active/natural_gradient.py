"""Posteriors by the methods of this library: trained anew, trained on, or with the old posterior as the prior."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vogn.active.posterior_method import ModelFactory, PosteriorMethod, Watch
from vogn.capture.objective import Objective
from vogn.data import epoch_batches
from vogn.errors import NonFiniteStatisticsError
from vogn.likelihoods import Gaussian, Likelihood
from vogn.optim import METHODS, NaturalGradient
from vogn.optim.prior_handover import use_as_prior
from vogn.posterior import GaussianPosterior
from vogn.predict.evaluation import device_of

Mode = Literal["continue", "prior", "retrain"]
PRIOR_METHODS = ("vogn", "von", "ivon", "kfac", "slang")
"""Methods that can have a posterior as their prior."""
NOISE_MEMORY = 0.02
"""Weight of a new batch in the average of squared residuals that a learnable noise follows."""


class NaturalGradientMethod(PosteriorMethod):
    """A posterior by a method of :data:`vogn.METHODS`, in either mode.

    ``update`` says what happens when there are new labels:

    - ``"continue"``: mean and curvature go on from where they are, with ``ess`` raised to the new number of labels, for
      ``update_steps`` steps on *all* labels. Every method can.
    - ``"prior"``: Bayes' rule. The old posterior becomes the prior in mean and precision
      (:func:`vogn.optim.prior_handover.use_as_prior`), and ``update_steps`` steps see the *new* labels only. VOGN, VON,
      IVON, KFAC and SLANG can; what the approximation lost of the old labels is lost for good.
    - ``"retrain"``: a new network, ``steps`` steps on all labels.

    The learning rate rises for a tenth of the steps and falls linearly to zero in their second half.

    Args:
        method: key of :data:`vogn.METHODS`.
        update: see above.
        variational: the mode of the method. A deterministic run's posterior is its Laplace approximation: predict with
            ``method="linearized"``.
        steps: of the first training, and of every one with ``update="retrain"``; >= 1.
        update_steps: of every other one; >= 1.
        batch_size: examples per step; all if there are fewer.
        prior_precision: of the prior ``N(0, I / prior_precision)``, > 0.
        temperature: of the posterior, > 0.
        **options: of the method: ``lr``, ``damping``, ``mc_samples``, ...

    Raises:
        ValueError: for an unknown method or update, or a number out of range.
    """

    def __init__(
        self,
        method: str = "kfac",
        *,
        update: Mode = "continue",
        variational: bool = True,
        steps: int = 1000,
        update_steps: int = 200,
        batch_size: int = 64,
        prior_precision: float = 1.0,
        temperature: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
        if update not in get_args(Mode):
            raise ValueError(f"update={update!r} is unknown; choose 'continue', 'prior' or 'retrain'")
        if update == "prior" and method not in PRIOR_METHODS:
            raise ValueError(
                f"update='prior' needs one of {', '.join(PRIOR_METHODS)}: a posterior cannot be the prior of "
                f"{method!r}; use update='continue'"
            )
        if ("variational" if variational else "deterministic") not in METHODS[method].modes:
            raise ValueError(f"method={method!r} does not run with variational={variational}")
        for name, whole in (("steps", steps), ("update_steps", update_steps), ("batch_size", batch_size)):
            if whole < 1:
                raise ValueError(f"{name}={whole} must be at least 1")
        for name, value in (("prior_precision", prior_precision), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be a positive finite number")
        others = {"ess": "temperature", "weight_decay": "prior_precision", "seed": "the learner's seed"}
        for name in options.keys() & others.keys():
            raise ValueError(f"{name} follows from the number of labels and the round: set {others[name]} instead")
        self.info, self.method, self.how, self.variational = METHODS[method], method, update, variational
        self.steps, self.update_steps, self.batch_size = steps, update_steps, batch_size
        self.prior_precision, self.temperature, self.options = prior_precision, temperature, options
        self.optimizer: NaturalGradient | None = None

    def describe(self) -> dict[str, Any]:
        """See :meth:`PosteriorMethod.describe`."""
        numbers = ("steps", "update_steps", "batch_size", "prior_precision", "temperature")
        names = ("method", "how", "variational", *numbers)
        return {name: getattr(self, name) for name in names} | {"options": {k: str(v) for k, v in self.options.items()}}

    def check(self, factory: ModelFactory) -> None:
        """Build an optimizer.

        Raises:
            ValueError, TypeError, UnsupportedObservationError: what the method says of the network or its options.
        """
        self._build(factory(), 1, 0).close()

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
        first = self.model is None or self.how == "retrain"
        if first:
            self._close()
            self.model = factory()
        assert self.model is not None
        device = device_of(self.model)
        x, y = x.to(device), y.to(device)
        if not first and self.how == "prior":
            assert isinstance(self.posterior, GaussianPosterior)
            x, y = x[new], y[new]
            self._close()
            self.optimizer = self._build(self.model, len(x), seed)
            use_as_prior(self.optimizer, self.posterior)
        elif self.optimizer is None:
            self.optimizer = self._build(self.model, len(x), seed)
        else:
            self._enlarge(self.optimizer, len(x))
        steps = self.steps if first else self.update_steps
        train(
            self.model, self.optimizer, likelihood, x, y,
            steps=steps, batch_size=self.batch_size, seed=seed, watch=watch,
        )  # fmt: skip
        self.posterior = self.optimizer.posterior()
        if self.how != "continue":
            self._close()

    def snapshot(self) -> dict[str, Any]:
        """See :meth:`PosteriorMethod.snapshot`."""
        state = super().snapshot()
        if state and self.optimizer is not None:
            state["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any], factory: ModelFactory) -> None:
        """See :meth:`PosteriorMethod.load_state_dict`."""
        self._close()
        super().load_state_dict(state, factory)
        if self.model is not None and "optimizer" in state:
            self.optimizer = self._build(self.model, 1, 0)
            self.optimizer.load_state_dict(state["optimizer"])

    # ------------------------------------------------------------------ parts

    def _build(self, model: nn.Module, examples: int, seed: int) -> NaturalGradient:
        ess = examples / self.temperature
        chosen: dict[str, Any] = {"ess": ess, "variational": self.variational, "seed": seed}
        if not self.info.sets_groups:
            chosen["weight_decay"] = self.prior_precision / ess
        return self.info.build(model, **(chosen | self.options))

    def _enlarge(self, optimizer: NaturalGradient, examples: int) -> None:
        """The same prior among more examples."""
        for group in optimizer.param_groups:
            group["ess"] = examples / self.temperature
            if not self.info.sets_groups:
                group["weight_decay"] = self.prior_precision / group["ess"]

    def _close(self) -> None:
        if self.optimizer is not None:
            self.optimizer.close()
        self.optimizer = None


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: it rises for a tenth of the run and falls to zero in the second half."""
    return min(1.0, (step + 1) / max(1.0, 0.1 * steps), 2.0 * (1.0 - step / steps))


def train(
    model: nn.Module,
    optimizer: NaturalGradient,
    likelihood: Likelihood,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    watch: Watch,
) -> None:
    """So many steps on batches in an order that the seed fixes; learning rates end as they began.

    Raises:
        NonFiniteStatisticsError: if a loss is NaN or infinite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    whole = any("objective" in step.REQUIRES for step in optimizer.chain)
    model.train()
    done = epoch = 0
    try:
        while done < steps:
            for rows in epoch_batches(len(x), batch_size, seed, epoch):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(done, steps)
                loss = _step(model, optimizer, likelihood, x[rows], y[rows], rows, whole=whole)
                if not math.isfinite(loss):
                    raise NonFiniteStatisticsError(f"training diverged: the loss is {loss:g}; lower lr, raise damping")
                done += 1
                watch(done, steps, loss)
                if done == steps:
                    break
            epoch += 1
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _step(
    model: nn.Module,
    optimizer: NaturalGradient,
    likelihood: Likelihood,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    *,
    whole: bool,
) -> float:
    """One step; the loss under the weights that it saw."""
    if whole:
        loss = float(optimizer.step(Objective(model, likelihood, x, y)))
        with torch.no_grad():
            outputs = model(x)
    else:
        total, samples = 0.0, int(optimizer.param_groups[0]["mc_samples"])
        optimizer.zero_grad()
        for _ in range(samples):
            with optimizer.sampled_params(rows), torch.enable_grad():
                outputs = model(x)
                value = likelihood(outputs, y)
                value.backward()
            total += float(value.detach())
        optimizer.step()
        loss = total / samples
    if isinstance(likelihood, Gaussian):
        likelihood.follow(outputs.detach(), y, NOISE_MEMORY)
    return loss
