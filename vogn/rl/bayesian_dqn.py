"""Deep exploration: one draw of the weights' posterior steers a whole episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from vogn.optim.methods import METHODS
from vogn.posterior import GaussianPosterior
from vogn.rl.dqn import DQNSettings, ValueLearner
from vogn.rl.environments import Environments, Transitions
from vogn.rl.recipes import recipe_of


class BayesianDQN(ValueLearner):
    """Q-learning by a variational natural-gradient method; every episode is greedy for one draw of the weights.

    The posterior is that of the transitions in the replay buffer, taken as independent observations of their TD
    targets: ``ess`` grows with the buffer and the prior ``N(0, I / prior_precision)`` stays. With ``target="sample"``
    the value of the next state is that of a draw of the posterior at the last copy: the maximum over actions of a draw
    is, on average, larger where the draw is uncertain, so that what is unknown looks good from afar. With
    ``target="mean"`` it is the value under the mean: uncertainty does not travel from a state to those before it.

    Args:
        environments: see :class:`ValueLearner`.
        settings: see :class:`DQNSettings`.
        method: name in :data:`vogn.METHODS`.
        options: of the method; what is not given is that of :func:`vogn.rl.recipes.recipe_of`.
        prior_precision: > 0.
        temperature: > 0: ``ess = transitions / temperature``.
        target: see above.
        seed: of everything.

    Raises:
        ValueError: for an unknown method or target, or a number out of range.

    Source: Osband, Van Roy, Russo, Wen (2019), "Deep Exploration via Randomized Value Functions" (a draw per
    episode); Khan et al. (2018), section 5.3 (weights of value and policy networks from VAdam).
    """

    def __init__(
        self,
        environments: Environments,
        settings: DQNSettings | None = None,
        *,
        method: str = "vogn",
        options: Mapping[str, Any] | None = None,
        prior_precision: float = 1.0,
        temperature: float = 1.0,
        target: Literal["mean", "sample"] = "sample",
        seed: int = 0,
    ) -> None:
        super().__init__(environments, settings, seed=seed)
        for name, value in (("prior_precision", prior_precision), ("temperature", temperature)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        if target not in ("mean", "sample"):
            raise ValueError(f"target={target!r}: choose 'mean' or 'sample'")
        self.prior_precision, self.temperature, self.target = prior_precision, temperature, target
        chosen = recipe_of(method) | dict(options or {})
        self.optimizer = METHODS[method].build(
            self.network, ess=1.0, weight_decay=prior_precision, seed=seed, **chosen
        )
        self.episodes = 0
        """Draws of weights for acting so far."""
        self._acting: dict[str, Tensor] = {}
        self._stale = torch.ones(self.count, dtype=torch.bool)
        self._target_posterior: GaussianPosterior | None = None
        self._target_mean = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self._target_draws = 0

    def explore(self, observations: Tensor) -> Tensor:
        """Greedy for the weights of the episode."""
        if bool(self._stale.any()):
            self._draw_for_new_episodes()
        if self.count == 1:
            only = {name: rows[0] for name, rows in self._acting.items()}
            return torch.as_tensor(functional_call(self.network, only, (observations,))).argmax(-1)
        values = vmap(lambda weights, x: functional_call(self.network, weights, (x.unsqueeze(0),)).squeeze(0))(
            self._acting, observations
        )
        return torch.as_tensor(values).argmax(-1)

    def observe(self, step: Transitions) -> None:
        """See :meth:`ValueLearner.observe`."""
        self._stale |= step.ended
        super().observe(step)

    def target_values(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        weights = self._target_mean
        if self._target_posterior is not None and self.target == "sample":
            draw = self._target_posterior.sample(1, seed=self.seed + 1, start=self._target_draws)
            self._target_draws += 1
            weights = {name: tensor[0] for name, tensor in draw.items()}
        valued = functional_call(self.network, weights, (observations,))
        choosing = self.network(observations) if self.settings.double and self.target == "mean" else valued
        return choosing, valued

    def update(self, observations: Tensor, actions: Tensor, targets: Tensor) -> None:
        """See :meth:`ValueLearner.update`."""
        ess = len(self.buffer) / self.temperature
        for group in self.optimizer.param_groups:
            group["ess"], group["weight_decay"] = ess, self.prior_precision / ess
        self.optimizer.zero_grad()
        with self.optimizer.sampled_params():
            self.likelihood(self.network(observations).gather(1, actions), targets).backward()
        self.optimizer.step()

    def copy_target(self) -> None:
        """Mean and posterior of now."""
        self._target_mean = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        if self.updates:
            self._target_posterior = self.optimizer.posterior()

    def posterior(self) -> GaussianPosterior:
        """Of the weights, given the buffer."""
        return self.optimizer.posterior()

    def _draw_for_new_episodes(self) -> None:
        posterior = self.posterior()
        for copy in torch.nonzero(self._stale).flatten().tolist():
            draw = posterior.sample(1, seed=self.seed, start=self.episodes)
            self.episodes += 1
            for name, tensor in draw.items():
                rows = self._acting.setdefault(name, tensor.new_zeros((self.count, *tensor.shape[1:])))
                rows[copy] = tensor[0]
        self._stale[:] = False

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        target = None
        if self._target_posterior is not None:
            description, tensors = self._target_posterior.content()
            target = {"description": description, "tensors": tensors}
        return super().state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "episodes": self.episodes,
            "acting": dict(self._acting),
            "stale": self._stale.clone(),
            "target": target,
            "target mean": dict(self._target_mean),
            "target draws": self._target_draws,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.episodes, self._target_draws = int(state["episodes"]), int(state["target draws"])
        self._acting, self._stale = dict(state["acting"]), state["stale"].clone()
        self._target_mean = dict(state["target mean"])
        target = state["target"]
        self._target_posterior = (
            None if target is None else GaussianPosterior.from_content(target["description"], target["tensors"])
        )
