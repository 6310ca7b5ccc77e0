"""The batch of real-valued observations that together tell most about the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Chunks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives, as often as it is called, the pool in pieces of (indices ``(n,)``, outputs ``(S, n)``), in one order."""


def joint_information_gain(chunks: Chunks, count: int, noise_variance: float) -> tuple[Tensor, Tensor]:
    """The greedy batch for ``0.5 log det(I + V / noise^2)``, ``V`` the covariance of the batch's outputs.

    Outputs are taken as jointly Gaussian with the covariance of the weight samples, ``V = A^T A`` with the centred
    outputs ``A`` over ``sqrt(S)``. What is left of a variance once the batch is known is ``a^T (I + A_B A_B^T /
    noise^2)^(-1) a``, so that an ``S x S`` matrix is all that is kept, and the pool is gone through once for every
    example of the batch.

    Args:
        chunks: the pool.
        count: how many to choose; all if the pool has fewer.
        noise_variance: of an observation, > 0.

    Returns:
        Indices ``(b,)`` in the order of choice; gains ``(b,)`` in nats, whose sum is the information of the batch.

    Raises:
        ValueError: if the noise is not positive, or there are fewer than two weight samples.

    Source: Krause, Singh, Guestrin (2008), "Near-Optimal Sensor Placements in Gaussian Processes", for greedy batches;
    Holzmüller et al. (2023), "A Framework and Benchmark for Deep Batch Active Learning for Regression", section 4.
    """
    if not 0 < noise_variance < float("inf"):
        raise ValueError(f"noise_variance={noise_variance} must be positive and finite")
    chosen: list[int] = []
    gains: list[float] = []
    inverse: Tensor | None = None
    while len(chosen) < count:
        best, best_index, best_column = -1.0, -1, None
        for indices, outputs in chunks():
            if len(outputs) < 2:
                raise ValueError("a covariance needs at least two weight samples")
            columns = (outputs.double() - outputs.double().mean(0)) / len(outputs) ** 0.5
            if inverse is None:
                inverse = torch.eye(len(columns), dtype=columns.dtype, device=columns.device)
            left = (columns * (inverse @ columns)).sum(0)
            for index in chosen:
                left[indices == index] = -1.0
            value, place = left.max(0)
            if float(value) > best:
                best, best_index, best_column = float(value), int(indices[place]), columns[:, place].clone()
        if best_column is None or inverse is None:
            break
        chosen.append(best_index)
        gains.append(0.5 * math.log1p(max(best, 0.0) / noise_variance))
        direction = inverse @ best_column  # Sherman, Morrison
        inverse = inverse - torch.outer(direction, direction) / (noise_variance + best_column @ direction)
    return torch.tensor(chosen, dtype=torch.int64), torch.tensor(gains, dtype=torch.float64)
