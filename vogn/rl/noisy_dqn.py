"""NoisyNet: learnt noise on the weights, without a posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vogn.rl.dqn import DQN, DQNSettings
from vogn.rl.environments import Environments
from vogn.rl.randomness import derived_seed


class NoisyLinear(nn.Module):
    """``y = (M + S * eps_W) x + m + s * eps_b`` with learnt ``M, S, m, s``.

    The noise is factorised, ``eps_W = f(u) f(v)^T`` with ``f(u) = sign(u) sqrt(|u|)``. It stays until
    :meth:`draw` is called; :meth:`quiet` sets it to zero.

    Args:
        inputs, outputs: features, >= 1.
        initial: the standard deviations begin at ``initial / sqrt(inputs)``.

    Source: Fortunato et al. (2018), "Noisy Networks for Exploration", equations 9 to 11.
    """

    def __init__(self, inputs: int, outputs: int, initial: float = 0.5) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.mean = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.mean_bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))
        self.spread = nn.Parameter(torch.full((outputs, inputs), initial * bound))
        self.spread_bias = nn.Parameter(torch.full((outputs,), initial * bound))
        self.noise_in: Tensor
        self.noise_out: Tensor
        self.register_buffer("noise_in", torch.zeros(inputs))
        self.register_buffer("noise_out", torch.zeros(outputs))

    def draw(self, generator: torch.Generator) -> None:
        """New noise."""
        for noise in (self.noise_in, self.noise_out):
            u = torch.randn(noise.shape, generator=generator)
            noise.copy_(u.sign() * u.abs().sqrt())

    def quiet(self) -> None:
        """No noise."""
        self.noise_in.zero_()
        self.noise_out.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs)`` to ``(N, outputs)``."""
        weight = self.mean + self.spread * torch.outer(self.noise_out, self.noise_in)
        return functional.linear(x, weight, self.mean_bias + self.spread_bias * self.noise_out)


class NoisyDQN(DQN):
    """Greedy actions of a network with :class:`NoisyLinear` layers; new noise for every action and every update.

    Args:
        environments: see :class:`ValueLearner`.
        settings: see :class:`DQNSettings`.
        lr: of Adam.
        seed: of everything.

    Source: Fortunato et al. (2018).
    """

    def __init__(
        self, environments: Environments, settings: DQNSettings | None = None, *, lr: float = 1e-3, seed: int = 0
    ) -> None:
        super().__init__(environments, settings, lr=lr, epsilon=(0.0, 0.0), seed=seed)
        self.draws = 0

    def build_network(self) -> nn.Module:
        """Noisy layers with ReLU between them."""
        sizes = (self.features, *self.settings.hidden, self.choices)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [NoisyLinear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def explore(self, observations: Tensor) -> Tensor:
        """Greedy under new noise."""
        self._draw(self.network)
        return self.network(observations).argmax(-1)

    @torch.no_grad()
    def best(self, observations: Tensor) -> Tensor:
        """Greedy without noise."""
        for layer in _noisy(self.network):
            layer.quiet()
        return torch.as_tensor(self.network(observations)).argmax(-1)

    def target_values(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of their own in both networks."""
        self._draw(self.network)
        self._draw(self.target)
        return super().target_values(observations)

    def update(self, observations: Tensor, actions: Tensor, targets: Tensor) -> None:
        """Under new noise."""
        self._draw(self.network)
        super().update(observations, actions, targets)

    def _draw(self, network: nn.Module) -> None:
        self.draws += 1
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.draws))
        for layer in _noisy(network):
            layer.draw(generator)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        return super().state_dict() | {"draws": self.draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.draws = int(state["draws"])


def _noisy(network: nn.Module) -> list[NoisyLinear]:
    return [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]
