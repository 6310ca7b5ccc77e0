"""Other ways to explore with a network: chance, an ensemble, and exact Bayes on its features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vogn.rl.linear_thompson import LinearThompson
from vogn.rl.neural_bandit import NeuralBandit


class EpsilonGreedy(NeuralBandit):
    """The arm that looks best, but with probability ``epsilon`` any arm.

    Args:
        network: see :class:`NeuralBandit`.
        features: ``d``.
        arms: ``K``.
        epsilon: at the first decision, in [0, 1]; 0 is the greedy agent.
        decay_rounds: ``epsilon`` falls as ``exp(-round / decay_rounds)``; ``inf`` keeps it.
        lr: of Adam.
        **common: see :class:`NeuralBandit`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        features: int,
        arms: int,
        *,
        epsilon: float = 0.1,
        decay_rounds: float = math.inf,
        lr: float = 3e-3,
        **common: Any,
    ) -> None:
        super().__init__(network, features, arms, **common)
        if not 0 <= epsilon <= 1 or not decay_rounds > 0:
            raise ValueError(f"epsilon={epsilon} must be in [0, 1] and decay_rounds={decay_rounds} above 0")
        self.epsilon, self.decay_rounds = epsilon, decay_rounds
        self.optimizer = torch.optim.Adam(network.parameters(), lr)

    def fit(self) -> None:
        """Steps of Adam."""
        for _ in range(self.steps):
            x, arms, rewards = self.batch()
            self.optimizer.zero_grad()
            self.loss(self.network(x), arms, rewards).backward()
            self.optimizer.step()

    @torch.no_grad()
    def decide(self, x: Tensor) -> int:
        """See the class."""
        if self.generator.uniform() < self.epsilon * math.exp(-self.rounds / self.decay_rounds):
            return int(self.generator.integers(self.arms))
        return int(self.network(x).argmax())

    def learnt_state(self) -> dict[str, Any]:
        """See :meth:`NeuralBandit.learnt_state`."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_learnt_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`NeuralBandit.load_learnt_state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class EnsembleThompson(NeuralBandit):
    """Several networks, each on its own resampled history; every decision is that of one of them, drawn at random.

    Args:
        networks: members, two or more, initialised differently.
        features: ``d``.
        arms: ``K``.
        lr: of Adam.
        **common: see :class:`NeuralBandit`. One ``steps`` is a step of every member.

    Raises:
        ValueError: for fewer than two members, or a number out of range.

    Source: Osband, Blundell, Pritzel, Van Roy (2016), "Deep Exploration via Bootstrapped DQN"; Lu and Van Roy (2017),
    "Ensemble Sampling". A round counts for a member as often as a Poisson variable of mean 1 says.
    """

    def __init__(
        self, networks: Sequence[nn.Module], features: int, arms: int, *, lr: float = 3e-3, **common: Any
    ) -> None:
        super().__init__(nn.ModuleList(networks), features, arms, **common)
        if len(networks) < 2:
            raise ValueError(f"an ensemble needs at least two members, got {len(networks)}")
        self.members = list(networks)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)

    def fit(self) -> None:
        """Steps of Adam, on other batches for every member."""
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            for number, member in enumerate(self.members):
                x, arms, rewards, weight = self._weighted_batch(number)
                outputs = member(x).gather(1, arms)
                self.likelihood(outputs, rewards, weight=weight).backward()
            self.optimizer.step()

    def _weighted_batch(self, member: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch with the member's counts of its rounds: always the same count for the same round."""
        chosen = self.generator.integers(self.rounds, size=min(self.batch_size, self.rounds))
        x, arms, rewards = self.history()
        index = torch.from_numpy(chosen)
        return x[index], arms[index].unsqueeze(1), rewards[index].unsqueeze(1), self._counts(member)[index]

    def _counts(self, member: int) -> Tensor:
        """Poisson counts of all rounds so far, ``(n,)``; a function of seed, member and round."""
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + member)
        size = 1 << max(4, (self.rounds - 1).bit_length())
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)[: self.rounds]
        steps = torch.tensor([sum(math.exp(-1) / math.factorial(j) for j in range(k + 1)) for k in range(12)])
        return torch.searchsorted(steps.double(), uniform).float()

    @torch.no_grad()
    def decide(self, x: Tensor) -> int:
        """See the class."""
        return int(self.members[int(self.generator.integers(len(self.members)))](x).argmax())

    def learnt_state(self) -> dict[str, Any]:
        """See :meth:`NeuralBandit.learnt_state`."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_learnt_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`NeuralBandit.load_learnt_state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class LastLayerThompson(EpsilonGreedy):
    """Exact Bayesian linear regression on the features that a network has learnt, anew after every update.

    Args:
        network: ``nn.Sequential`` whose last module is the linear output layer.
        features: ``d``.
        arms: ``K``.
        prior_precision: of the last layer's weights, > 0.
        lr: of Adam.
        **common: see :class:`NeuralBandit`.

    Raises:
        TypeError: if the network has another form.
        ValueError: if a number is out of range.

    Source: Riquelme, Tucker, Snoek (2018), "NeuralLinear".
    """

    def __init__(
        self,
        network: nn.Module,
        features: int,
        arms: int,
        *,
        prior_precision: float = 1.0,
        lr: float = 3e-3,
        **common: Any,
    ) -> None:
        super().__init__(network, features, arms, epsilon=0.0, lr=lr, **common)
        if not isinstance(network, nn.Sequential) or not isinstance(network[-1], nn.Linear):
            raise TypeError("LastLayerThompson needs an nn.Sequential that ends in nn.Linear, such as vogn.models.mlp")
        self.body = network[:-1]
        self.head = LinearThompson(
            network[-1].in_features,
            arms,
            noise=float(self.likelihood.noise),
            prior_precision=prior_precision,
            seed=self.seed,
        )

    @torch.no_grad()
    def fit(self) -> None:
        """Steps of Adam, then the posterior of the last layer given all rounds."""
        with torch.enable_grad():
            super().fit()
        x, arms, rewards = self.history()
        phi = nn.functional.pad(self.body(x).double(), (0, 1), value=1.0) / self.head.noise
        one_hot = nn.functional.one_hot(arms, self.arms).double()
        eye = torch.eye(phi.shape[1], dtype=torch.float64)
        self.head.set_posterior(
            torch.einsum("nk,ni,nj->kij", one_hot, phi, phi) + self.head.prior_precision * eye,
            torch.einsum("nk,ni,n->ki", one_hot, phi, rewards.double() / self.head.noise),
        )

    @torch.no_grad()
    def decide(self, x: Tensor) -> int:
        """Thompson sampling of the last layer."""
        return self.head.choose(self.body(x)[0].double().numpy())

    def learnt_state(self) -> dict[str, Any]:
        """See :meth:`NeuralBandit.learnt_state`."""
        return super().learnt_state() | {"head": self.head.state_dict()}

    def load_learnt_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`NeuralBandit.load_learnt_state`."""
        super().load_learnt_state(state)
        self.head.load_state_dict(state["head"])
