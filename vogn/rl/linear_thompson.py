"""Thompson sampling with exact Bayesian linear regression of every arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vogn.rl.bandit_agent import BanditAgent
from vogn.rl.randomness import generator_from_state, generator_state


class LinearThompson(BanditAgent):
    """``r = phi(x)^T theta_k + noise eps`` with ``theta_k ~ N(0, I / prior_precision)``, ``phi(x) = (x, 1)``.

    The posterior of arm ``k`` after its rewards is ``N(m_k, P_k^{-1})``::

        P_k <- P_k + phi phi^T / noise^2          b_k <- b_k + phi r / noise^2          m_k = P_k^{-1} b_k

    which is, after any number of rounds, ridge regression on all of them. A decision draws one ``theta_k`` for every
    arm and takes the largest ``phi^T theta_k``.

    Args:
        features: ``d``.
        arms: ``K``.
        noise: standard deviation of rewards, > 0.
        prior_precision: > 0.
        seed: of the draws.

    Raises:
        ValueError: if a number is out of range.

    Source: Agrawal and Goyal (2013), "Thompson Sampling for Contextual Bandits with Linear Payoffs"; Bishop (2006),
    "Pattern Recognition and Machine Learning", equations 3.50 and 3.51.
    """

    def __init__(
        self, features: int, arms: int, *, noise: float = 0.3, prior_precision: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(features, arms)
        for name, value in (("noise", noise), ("prior_precision", prior_precision)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        self.noise, self.prior_precision, self.seed = noise, prior_precision, seed
        self._generator = np.random.default_rng(seed)
        size = features + 1
        self.precision: Tensor = prior_precision * torch.eye(size, dtype=torch.float64).repeat(arms, 1, 1)
        """``P``, ``(K, d + 1, d + 1)``, float64."""
        self.information: Tensor = torch.zeros(arms, size, dtype=torch.float64)
        """``b``, ``(K, d + 1)``."""
        self._factor: Tensor | None = None

    def mean(self) -> Tensor:
        """``m``, ``(K, d + 1)``."""
        return torch.cholesky_solve(self.information.unsqueeze(-1), self._cholesky()).squeeze(-1)

    def draw(self) -> Tensor:
        """One ``theta_k`` for every arm, ``(K, d + 1)``."""
        noise = torch.from_numpy(self._generator.standard_normal((self.arms, self.features + 1)))
        upper = self._cholesky().transpose(-1, -2)
        return self.mean() + torch.linalg.solve_triangular(upper, noise.unsqueeze(-1), upper=True).squeeze(-1)

    def choose(self, context: NDArray[np.float64]) -> int:
        """The arm whose drawn expected reward is largest."""
        return int((self.draw() @ self._phi(self.checked(context))).argmax())

    def observe(self, context: NDArray[np.float64], arm: int, reward: float) -> None:
        """The posterior of one arm."""
        phi = self._phi(self.checked(context, arm, reward)) / self.noise
        self.precision[arm] += torch.outer(phi, phi)
        self.information[arm] += phi * (reward / self.noise)
        if self._factor is not None:
            self._factor[arm] = torch.linalg.cholesky(self.precision[arm])

    def set_posterior(self, precision: Tensor, information: Tensor) -> None:
        """Replace the posterior.

        Args:
            precision: ``P``, ``(K, d + 1, d + 1)``, positive definite.
            information: ``b = P m``, ``(K, d + 1)``.
        """
        self.precision, self.information, self._factor = precision.double(), information.double(), None

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`BanditAgent.state_dict`."""
        return {
            "precision": self.precision.clone(),
            "information": self.information.clone(),
            "generator": generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`BanditAgent.load_state_dict`."""
        self.precision = state["precision"].clone()
        self.information = state["information"].clone()
        self._generator = generator_from_state(state["generator"])
        self._factor = None

    def _cholesky(self) -> Tensor:
        if self._factor is None:
            self._factor = torch.linalg.cholesky(self.precision)
        return self._factor

    @staticmethod
    def _phi(context: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(np.append(context, 1.0))
