"""Core-set selection: examples that cover the pool, by the greedy choice of centres."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Chunks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives, as often as it is called, the pool in pieces of (indices ``(n,)``, features ``(n, F)``), in one order."""


def k_centres(chunks: Chunks, centres: Iterable[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """The example that is farthest from all centres becomes one, again and again.

    No radius that covers the pool is more than twice the smallest possible one. The pool is gone through once, and once
    again for every further example; a distance per example is kept, in memory ``N``.

    Args:
        chunks: the pool.
        centres: features of examples that have labels already, in pieces ``(n, F)``; none: the first choice is the
            pool's first example.
        count: how many to choose; all if the pool has fewer.

    Returns:
        Indices ``(count,)`` in the order of choice, and distances ``(count,)`` from the centres before (infinite where
        there were none).

    Source: Sener, Savarese (2018), "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    algorithm 1; Gonzalez (1985).
    """
    known = list(centres)
    chosen: list[int] = []
    distances: list[float] = []
    nearest: list[Tensor] = []
    latest: Tensor | None = None
    while len(chosen) < count:
        best, best_index, best_feature = -1.0, -1, None
        for number, (indices, features) in enumerate(chunks()):
            if len(nearest) <= number:
                start = features.new_full((len(features),), float("inf"))
                for part in known:
                    start = torch.minimum(start, _distances(features, part).amin(1))
                nearest.append(start)
            if latest is not None:
                away = _distances(features, latest.unsqueeze(0)).squeeze(1)
                nearest[number] = torch.minimum(nearest[number], away)
            open_ones = nearest[number].clone()
            for index in chosen:
                open_ones[indices == index] = -1.0
            value, place = open_ones.max(0)
            if float(value) > best:
                best, best_index, best_feature = float(value), int(indices[place]), features[place].clone()
        if best_feature is None:
            break
        chosen.append(best_index)
        distances.append(best)
        latest = best_feature
    return torch.tensor(chosen, dtype=torch.int64), torch.tensor(distances)


def _distances(one: Tensor, other: Tensor) -> Tensor:
    """Of all pairs; zero for equal features, whatever their length."""
    return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
