"""The unlabelled part of a pool under a posterior, piece by piece, with the same weight samples for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vogn.active.drawn_weights import DrawnWeights
from vogn.active.pool import Pool, checked_inputs
from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.predict import Predictive, predict

MOST_BYTES = 1 << 30
"""Outputs or features that are needed several times are kept up to this size; the rest is computed again."""


@dataclass
class Candidates:
    """What an acquisition may look at.

    Args:
        model: the network.
        posterior: over its weights.
        likelihood: the observation model.
        pool: all examples.
        open: numbers of those without a label, ``(N,)``, int64, in increasing order.
        known: inputs that have labels, ``(n, ...)``, or ``None``.
        targets: inputs at which predictions matter, ``(M, ...)``; ``None``: a random part of the pool.
        samples: weight samples.
        chunk: examples that are read and predicted at a time.
        seed: of the weight samples and of everything random in the choice.
        prediction: further arguments of :func:`vogn.predict`.
        watch: is called before every piece; what it raises ends the choice.
    """

    model: nn.Module
    posterior: Posterior
    likelihood: Likelihood
    pool: Pool
    open: Tensor
    known: Tensor | None = None
    targets: Tensor | None = None
    samples: int = 32
    chunk: int = 512
    seed: int = 0
    prediction: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.chunk < 1:
            raise ValueError(f"samples={self.samples} and chunk={self.chunk} must be at least 1")
        if self.prediction.get("method", "mc") == "mc":
            self.posterior = DrawnWeights(self.posterior)

    def __len__(self) -> int:
        return len(self.open)

    def predict(self, x: Tensor, *, keep_samples: bool = False) -> Predictive:
        """The predictive distribution at inputs, under the weight samples of this object."""
        options = {"batch_size": self.chunk} | dict(self.prediction)
        return predict(
            self.model,
            self.posterior,
            x,
            samples=self.samples,
            likelihood=self.likelihood,
            seed=self.seed,
            keep_samples=keep_samples,
            **options,
        )

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(numbers ``(n,)``, inputs ``(n, ...)``) of the open examples."""
        for numbers in self.open.split(self.chunk):
            self.watch()
            yield numbers, checked_inputs(self.pool, numbers)

    def predictions(self, *, keep_samples: bool = False) -> Iterator[tuple[Tensor, Predictive]]:
        """(numbers, predictive distribution) of the open examples."""
        for numbers, x in self.pieces():
            yield numbers, self.predict(x, keep_samples=keep_samples)

    def target_predictions(self, count: int) -> Predictive:
        """Predictions, with their samples, where they matter; where nothing is said, at so many open examples."""
        x = self.targets
        if x is None:
            x = checked_inputs(self.pool, self.open[self.some(count)])
        return self.predict(x, keep_samples=True)

    def some(self, count: int) -> Tensor:
        """Places of so many open examples at random, increasing; all if there are fewer."""
        order = self.generator(1).permutation(len(self.open))[:count]
        return torch.from_numpy(np.sort(order))

    def generator(self, stream: int) -> np.random.Generator:
        """A source of random numbers of this choice; another one for every stream."""
        return np.random.default_rng([stream, self.seed])

    def priorities(self) -> np.ndarray:
        """A random number for every example of the pool: whom to prefer where scores are equal."""
        return self.generator(0).random(len(self.pool))

    def chosen(self, scores: Sequence[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
        """The examples with the largest scores, largest first, equal ones in random order.

        Args:
            scores: pieces of (numbers, scores).
            count: how many; all if there are fewer.

        Returns:
            Numbers and scores.

        Raises:
            ValueError: if a score is NaN.
        """
        numbers = torch.cat([n for n, _ in scores]).numpy()
        values = torch.cat([s.detach().double().cpu() for _, s in scores]).numpy()
        if np.isnan(values).any():
            raise ValueError("scores are NaN; check the inputs and the training")
        order = np.lexsort((self.priorities()[numbers], values))[::-1][:count].copy()
        return torch.from_numpy(numbers[order]), torch.from_numpy(values[order])


def remembered(
    source: Callable[[], Iterable[tuple[Tensor, Tensor]]],
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Pieces that are computed once if all of them fit in :data:`MOST_BYTES`, and else every time."""
    kept: list[tuple[Tensor, Tensor]] | None = None

    def again() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal kept
        if kept is not None:
            yield from kept
            return
        found: list[tuple[Tensor, Tensor]] = []
        room = MOST_BYTES
        for piece in source():
            room -= piece[1].numel() * piece[1].element_size()
            if room >= 0:
                found.append(piece)
            else:
                found.clear()
            yield piece
        kept = found if room >= 0 else None

    return again
