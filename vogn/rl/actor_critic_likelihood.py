"""The joint observation model of an actor-critic: sampled action and value, independent given the state."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vogn.likelihoods.base import Likelihood, Prediction, at_least_float32


class ActorCritic(Likelihood):
    """``p(a, v | s) = pi(a | s) N(v; V(s), critic_noise^2)``; its Fisher matrix is the one that trust regions measure.

    Outputs ``(N, K)``; targets ``(N, a + 1)``, floats: the action (its index if discrete), then the value. Discrete
    policies: ``n`` logits and the value, ``K = n + 1``. Real actions, ``pi = N(mean, exp(log_std)^2)``: ``a`` means,
    ``a`` values of ``log_std`` and the value, ``K = 2 a + 1``. :meth:`hessian` is the expected one, the Fisher
    information in the outputs.

    Args:
        actions: number of discrete actions; ``None`` for real ones.
        size: ``a``, numbers of a real action; 1 for discrete ones.
        critic_noise: > 0.
        critic: whether there is a value; without it ``K`` and the targets are one shorter.

    Raises:
        ValueError: if a number is out of range.

    Source: Wu, Mansimov, Grosse, Liao, Ba (2017), "Scalable trust-region method for deep reinforcement learning using
    Kronecker-factored approximation", section 3.1.
    """

    kind: ClassVar[str] = "actor_critic"

    def __init__(
        self, actions: int | None, size: int = 1, *, critic_noise: float = 1.0, critic: bool = True
    ) -> None:
        if not 0 < critic_noise < math.inf or size < 1 or (actions is not None and actions < 2):
            raise ValueError(f"critic_noise={critic_noise} must be > 0, size={size} >= 1 and actions={actions} >= 2")
        self.actions, self.size, self.critic_noise, self.critic = actions, size, critic_noise, critic
        self.policy_outputs = 2 * size if actions is None else actions
        """Of the outputs, the first so many."""

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Likelihood.to_dict`."""
        return {
            "kind": self.kind,
            "actions": self.actions,
            "size": self.size,
            "critic_noise": self.critic_noise,
            "critic": self.critic,
        }

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of the policy ``(N, ...)`` and values ``(N,)``, zero without a critic."""
        outputs = at_least_float32(outputs)
        value = outputs[:, -1] if self.critic else outputs.new_zeros(len(outputs))
        return outputs[:, : self.policy_outputs], value

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        """``log pi(a | s)``, ``(N,)``, of policy outputs and actions ``(N, a)``."""
        if self.actions is not None:
            return torch.log_softmax(policy, -1).gather(1, actions[:, :1].long()).squeeze(1)
        mean, log_std = policy.chunk(2, -1)
        standard = (actions - mean) * (-log_std).exp()
        return (-0.5 * standard.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self, policy: Tensor) -> Tensor:
        """Of the policy, nats, ``(N,)``."""
        if self.actions is not None:
            log_p = torch.log_softmax(policy, -1)
            return -(log_p.exp() * log_p).sum(-1)
        return (policy.chunk(2, -1)[1] + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)

    def kl(self, policy: Tensor, other: Tensor) -> Tensor:
        """``KL(pi || other)`` in nats, ``(N,)``, of two policies' outputs."""
        if self.actions is not None:
            log_p, log_q = torch.log_softmax(policy, -1), torch.log_softmax(other, -1)
            return (log_p.exp() * (log_p - log_q)).sum(-1)
        (m, log_s), (n, log_t) = policy.chunk(2, -1), other.chunk(2, -1)
        ratio = (2 * (log_s - log_t)).exp()
        return 0.5 * (ratio + (m - n).square() * (-2 * log_t).exp() - 1 - ratio.log()).sum(-1)

    def check_shapes(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_shapes`."""
        width, wanted = self.policy_outputs + self.critic, self.size + self.critic
        if outputs.ndim != 2 or outputs.shape[1] != width or targets.shape != (len(outputs), wanted):
            raise ValueError(
                f"outputs must be (N, {width}) and targets (N, {wanted}), got {tuple(outputs.shape)} and "
                f"{tuple(targets.shape)}"
            )

    def check_values(self, outputs: Tensor, targets: Tensor) -> None:
        """See :meth:`Likelihood.check_values`."""
        if not bool(targets.isfinite().all()):
            raise ValueError("targets have actions or values that are not finite")
        if self.actions is not None and not bool(((targets[:, 0] >= 0) & (targets[:, 0] < self.actions)).all()):
            raise ValueError(f"actions range from {targets[:, 0].min()} to {targets[:, 0].max()}, of {self.actions}")

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``-log pi(a | s) - log N(v; V(s), critic_noise^2)``, ``(N,)``."""
        policy, value = self.split(outputs)
        terms = -self.log_prob(policy, targets[:, : self.size])
        if self.critic:
            standard = (targets[:, -1] - value) / self.critic_noise
            terms = terms + 0.5 * standard.square() + math.log(self.critic_noise) + 0.5 * math.log(2 * math.pi)
        return terms

    @torch.no_grad()
    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions of the policy and values around the critic's, ``(N, a + 1)``."""
        policy, value = self.split(outputs)
        found = [self.sample_action(policy, generator)]
        if self.critic:
            noise = torch.empty_like(value).normal_(generator=generator)
            found.append((value + self.critic_noise * noise).unsqueeze(1))
        return torch.cat(found, 1)

    @torch.no_grad()
    def sample_action(self, policy: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions ``(N, a)``, floats."""
        if self.actions is not None:
            clocks = torch.empty_like(policy).exponential_(generator=generator)
            return (policy - clocks.log()).argmax(-1, keepdim=True).to(policy)
        mean, log_std = policy.chunk(2, -1)
        return mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Derivative of :meth:`terms` in the outputs, in closed form."""
        policy, value = self.split(outputs)
        if self.actions is not None:
            chosen = functional.one_hot(targets[:, 0].long(), self.actions).to(policy)
            parts = [torch.softmax(policy, -1) - chosen]
        else:
            mean, log_std = policy.chunk(2, -1)
            standard = (targets[:, : self.size] - mean) * (-log_std).exp()
            parts = [-standard * (-log_std).exp(), 1 - standard.square()]
        if self.critic:
            parts.append(((value - targets[:, -1]) / self.critic_noise**2).unsqueeze(1))
        return torch.cat(parts, 1)

    def hessian_sqrt(self, outputs: Tensor) -> Tensor:
        """Columns ``c_k`` with ``sum_k c_k c_k^T`` the Fisher information, ``(K, N, K)``."""
        policy, value = self.split(outputs)
        if self.actions is not None:
            p = torch.softmax(policy, -1)
            root = p.sqrt()
            block = torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)
        else:
            log_std = policy.chunk(2, -1)[1]
            block = torch.diag_embed(torch.cat([(-log_std).exp(), torch.full_like(log_std, math.sqrt(2))], -1))
        if self.critic:
            block = functional.pad(block, (0, 1, 0, 1))
            block[:, -1, -1] = 1 / self.critic_noise
        return block.movedim(-1, 0)

    def hessian(self, outputs: Tensor) -> Tensor:
        """The Fisher information in the outputs, ``(N, K, K)``."""
        columns = self.hessian_sqrt(outputs)
        return torch.einsum("kni,knj->nij", columns, columns)

    def predictive(self, output_samples: Tensor) -> Prediction:
        """Moments of the outputs over the samples."""
        samples = at_least_float32(output_samples)
        return samples.mean(0), samples.var(0, correction=0), samples

    def nll(
        self, mean: Tensor, targets: Tensor, *, variance: Tensor | None = None, samples: Tensor | None = None
    ) -> Tensor:
        """:meth:`terms` of the mean outputs; ``variance`` and ``samples`` are not needed."""
        return self.terms(mean, targets)
