"""Generalised advantage estimates."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(
    rewards: Tensor, values: Tensor, following: Tensor, terminated: Tensor, ended: Tensor, discount: float, gae: float
) -> Tensor:
    """Generalised advantage estimates.

    Args:
        rewards, values, following: ``(T, count)``; ``following`` holds the values of the states after the steps, before
            any reset.
        terminated, ended: ``(T, count)``, bool; a truncated episode has ended but its last state keeps its value.
        discount, gae: in [0, 1].

    Returns:
        ``A_t = delta_t + discount gae A_(t+1)``, with ``delta_t = r_t + discount V(s_(t+1)) - V(s_t)``, ``(T, count)``.

    Source: Schulman, Moritz, Levine, Jordan, Abbeel (2016), equations 11 and 16.
    """
    delta = rewards + discount * following * ~terminated - values
    out, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        running = delta[t] + discount * gae * running * ~ended[t]
        out[t] = running
    return out
