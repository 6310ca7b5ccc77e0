"""A posterior over a value network as a policy in the form that stable-baselines3 evaluates and records."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from vogn.posterior import Posterior


class ThompsonPolicy:
    """Greedy for a draw of the weights that stays for an episode; ``deterministic=True`` is greedy for the mean.

    :meth:`predict` has the signature of a stable-baselines3 model, so that the policy goes where a model goes:
    ``evaluate_policy``, ``VecVideoRecorder`` loops, callbacks that collect episodes. The network may come from
    anywhere: ``model.q_net.q_net`` of a ``DQN`` of stable-baselines3, for example, with a posterior by
    :func:`vogn.laplace`.

    Args:
        network: observations ``(N, d)``, float32, to values of discrete actions ``(N, K)``.
        posterior: of its weights.
        seed: of the draws; draw ``k`` belongs to the ``k``-th episode that begins, over all environments.

    Raises:
        TypeError: if the posterior is none.
    """

    def __init__(self, network: nn.Module, posterior: Posterior, *, seed: int = 0) -> None:
        if not isinstance(posterior, Posterior):
            raise TypeError(f"posterior must have sample() and mean(), got {type(posterior).__name__}")
        self.network, self.posterior, self.seed = network, posterior, seed
        self.draws = 0
        self._mean = posterior.mean()
        self._acting: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[Any],
        state: tuple[Any, ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[Any, ...] | None]:
        """Actions for observations, one row for each environment or a single one without a batch dimension.

        Args:
            observation: ``(N, d)`` or ``(d,)``, finite.
            state: handed back; there is none.
            episode_start: ``(N,)``: where an episode begins, new weights are drawn; ``None``: nowhere, but for
                environments that have no weights yet.
            deterministic: greedy for the mean, and no draw.

        Returns:
            Actions ``(N,)``, or a scalar array, and ``state``.

        Raises:
            ValueError: for observations that are not finite, or another number of rows than ``episode_start`` has.
        """
        x = torch.as_tensor(np.asarray(observation), dtype=torch.float32)
        single = x.ndim == 1
        rows = x.unsqueeze(0) if single else x
        if not bool(rows.isfinite().all()):
            raise ValueError("the observation has values that are not finite")
        if deterministic:
            actions = functional_call(self.network, self._mean, (rows,)).argmax(-1)
        else:
            started = np.zeros(len(rows), dtype=bool) if episode_start is None else np.asarray(episode_start)
            if started.shape != (len(rows),):
                raise ValueError(f"episode_start has shape {started.shape}, there are {len(rows)} observations")
            self._draw(started)
            values = [functional_call(self.network, w, (row[None],)) for w, row in zip(self._acting, rows, strict=True)]
            actions = torch.cat(values).argmax(-1)
        found = actions.numpy()
        return (found[0] if single else found), state

    def _draw(self, started: NDArray[Any]) -> None:
        if len(self._acting) != len(started):
            self._acting = [{} for _ in started]
        for i, begins in enumerate(started):
            if begins or not self._acting[i]:
                draw = self.posterior.sample(1, seed=self.seed, start=self.draws)
                self._acting[i] = {name: tensor[0] for name, tensor in draw.items()}
                self.draws += 1
