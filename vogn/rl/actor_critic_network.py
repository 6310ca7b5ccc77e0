"""Policy and value on one trunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vogn.models import mlp
from vogn.rl.actor_critic_likelihood import ActorCritic


class ActorCriticNetwork(nn.Module):
    """Observations ``(N, d)`` to the outputs of :class:`ActorCritic`, ``(N, K)``.

    The logarithm of the standard deviation of real actions is the same for all states: a linear layer of the input 1.

    Args:
        features: ``d``.
        hidden: widths of the trunk.
        likelihood: tells the outputs.
    """

    def __init__(self, features: int, hidden: tuple[int, ...], likelihood: ActorCritic) -> None:
        super().__init__()
        body = mlp((features, *hidden), "tanh") if hidden else nn.Identity()
        self.trunk = nn.Sequential(body, nn.Tanh()) if hidden else body
        width = hidden[-1] if hidden else features
        real = likelihood.actions is None
        self.policy = nn.Linear(width, likelihood.size if real else likelihood.policy_outputs)
        nn.init.zeros_(self.policy.bias)
        with torch.no_grad():
            self.policy.weight.mul_(0.01)  # the first policy is nearly the same everywhere
        self.log_std = nn.Linear(1, likelihood.size, bias=False) if real else None
        if self.log_std is not None:
            nn.init.zeros_(self.log_std.weight)
        self.value = nn.Linear(width, 1) if likelihood.critic else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        h = self.trunk(x)
        parts = [self.policy(h)]
        if self.log_std is not None:
            parts.append(self.log_std(torch.ones_like(x[:, :1])))
        if self.value is not None:
            parts.append(self.value(h))
        return torch.cat(parts, 1)
