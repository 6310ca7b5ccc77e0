"""Acquisitions for the loops of baal, which hand over predictions and want a ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vogn.active.acquisition import Acquisition, Pointwise
from vogn.active.acquisitions import acquisition_of
from vogn.active.predicted import PredictedCandidates


class BaalHeuristic:
    """What ``baal.active.ActiveLearningLoop(heuristic=...)`` asks of a heuristic; baal itself is not needed.

    Args:
        acquisition: an acquisition that looks at predictions only, or its name.
        noise: of observations, for real targets; ``None``: predictions are class probabilities.
        count: examples that batch acquisitions choose; the others are ranked behind them, in the order of the pool.
        seed: of everything random; equal scores are ranked at random.
    """

    def __init__(
        self, acquisition: str | Acquisition, *, noise: float | None = None, count: int = 10, seed: int = 0
    ) -> None:
        if count < 1:
            raise ValueError(f"count={count} must be at least 1")
        self.acquisition = acquisition_of(acquisition)
        self.noise, self.count, self.seed = noise, count, seed

    def get_ranks(self, predictions: Any, target_predictions: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Places from the best example to the worst, and scores in the order of the predictions.

        Args:
            predictions: ``(N, C, S)``, weight samples last, or a generator of such pieces.
            target_predictions: the same where predictions matter, for EPIG.
        """
        candidates = self._candidates(predictions, target_predictions)
        everything = len(candidates)
        if isinstance(self.acquisition, Pointwise):
            scores = torch.cat([s for _, s in self.acquisition.scores(candidates)])
            order, _ = candidates.chosen([(candidates.open, scores)], everything)
            return order.numpy(), scores.double().cpu().numpy()
        found = self.acquisition.select(candidates, min(self.count, everything))
        chosen = found.indices.tolist()
        scores_found = np.full(everything, -np.inf)
        scores_found[chosen] = found.scores.numpy()
        taken = set(chosen)
        return np.array([*chosen, *(n for n in range(everything) if n not in taken)]), scores_found

    def get_uncertainties(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Scores, ``(N,)``; minus infinity for examples that a batch acquisition did not choose."""
        return self.get_ranks(predictions, target_predictions)[1]

    def __call__(self, predictions: Any, target_predictions: Any = None) -> np.ndarray:
        """Places from the best example to the worst, ``(N,)``."""
        return self.get_ranks(predictions, target_predictions)[0]

    def _candidates(self, predictions: Any, target_predictions: Any) -> PredictedCandidates:
        candidates = PredictedCandidates(
            _samples_first(predictions),
            noise=self.noise,
            targets=None if target_predictions is None else _samples_first(target_predictions),
            seed=self.seed,
        )
        self.acquisition.check(candidates.likelihood)
        return candidates


def _samples_first(predictions: Any) -> Tensor:
    """``(N, C, S)`` to ``(S, N, C)``.

    Raises:
        ValueError: for another shape.
    """
    if isinstance(predictions, Iterator):
        pieces = [torch.as_tensor(np.asarray(piece)) for piece in predictions]
        if not pieces:
            raise ValueError("there are no predictions")
        found = torch.cat(pieces)
    else:
        found = torch.as_tensor(np.asarray(predictions))
    if found.ndim != 3:
        raise ValueError(f"predictions must have shape (N, C, S), one label per example; got {tuple(found.shape)}")
    return found.permute(2, 0, 1).contiguous()
