"""Acquisitions for the loops of scikit-activeml, which hand over arrays with missing labels and want numbers back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from vogn.active.acquisition import Acquisition, Pointwise
from vogn.active.acquisitions import acquisition_of
from vogn.active.candidates import Candidates
from vogn.active.errors import PoolError, PoolExhaustedError
from vogn.active.pool import as_pool, checked_inputs
from vogn.active.posterior_method import PosteriorMethod, Refit
from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.predict.evaluation import seeded


class QueryStrategy:
    """``query(X, y, ...)`` as a pool-based query strategy of scikit-activeml; that package is not needed.

    Every call trains on the labelled rows, a new network if there are no more of them than in the last call, and
    otherwise as the posterior method updates.

    Args:
        acquisition: an acquisition, or its name.
        model_factory: makes a network for rows of ``X`` as float32.
        posterior_method: see :class:`vogn.active.ActiveLearner`.
        likelihood: the observation model; classes are 0, 1, ...
        samples: weight samples, >= 1.
        prediction: further arguments of :func:`vogn.predict`.
        seed: of everything random.
    """

    def __init__(
        self,
        acquisition: str | Acquisition,
        model_factory: Callable[[], nn.Module],
        posterior_method: PosteriorMethod | Callable[[nn.Module, Likelihood, Any, Any], Posterior],
        likelihood: Likelihood,
        *,
        samples: int = 32,
        prediction: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.acquisition = acquisition_of(acquisition)
        self.acquisition.check(likelihood)
        self.method = posterior_method if isinstance(posterior_method, PosteriorMethod) else Refit(posterior_method)
        self.model_factory, self.likelihood, self.samples = model_factory, likelihood, samples
        self.prediction, self.seed = dict(prediction or {}), seed
        self._seen: list[int] = []

    def query(
        self, X: Any, y: Any, candidates: Any = None, batch_size: int = 1, return_utilities: bool = False
    ) -> Any:
        """Rows whose labels to ask for.

        Args:
            X: ``(n, ...)``, all rows.
            y: ``(n,)``, NaN where there is no label.
            candidates: numbers of the rows that may be asked for; ``None``: all without a label.
            batch_size: how many, >= 1; all if there are fewer.
            return_utilities: return scores too; for acquisitions that score examples by themselves.

        Returns:
            Numbers ``(b,)``, best first; with ``return_utilities`` also scores ``(b, n)``: row ``k`` has NaN where
            ``k`` could not choose.

        Raises:
            PoolError: if there is no labelled row, shapes do not fit, or features are NaN.
            PoolExhaustedError: if there are no candidates.
        """
        y = np.asarray(y, dtype=float)
        x = torch.as_tensor(np.asarray(X, dtype=np.float32))
        if y.ndim != 1 or len(x) != len(y):
            raise PoolError(f"X has {len(x)} rows and y shape {y.shape}; one label per row, NaN where it is missing")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if return_utilities and not isinstance(self.acquisition, Pointwise):
            kind = type(self.acquisition).__name__
            raise ValueError(f"{kind} has no utilities of single rows: use return_utilities=False")
        numbers = np.flatnonzero(np.isnan(y)) if candidates is None else np.asarray(candidates)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise PoolError("candidates must be numbers of rows of X, shape (m,)")
        if not len(numbers):
            raise PoolExhaustedError("every row has a label: there is nothing to ask for")
        rows = as_pool(x)
        checked_inputs(rows, torch.arange(len(x)))
        self._learn(x, y)
        assert self.method.model is not None and self.method.posterior is not None
        pool = Candidates(
            self.method.model, self.method.posterior, self.likelihood, rows, torch.from_numpy(np.sort(numbers)),
            known=x[~np.isnan(y)], samples=self.samples, seed=self.seed, prediction=self.prediction,
        )  # fmt: skip
        if not return_utilities:
            return self.acquisition.select(pool, batch_size).indices.numpy()
        assert isinstance(self.acquisition, Pointwise)
        pieces = self.acquisition.scores(pool)
        chosen = pool.chosen(pieces, batch_size)[0].numpy()
        utilities = np.full((len(chosen), len(x)), np.nan)
        for n, scores in pieces:
            utilities[:, n.numpy()] = scores.double().cpu().numpy()
        for k in range(1, len(chosen)):
            utilities[k:, chosen[k - 1]] = np.nan
        return chosen, utilities

    def _learn(self, x: torch.Tensor, y: np.ndarray) -> None:
        """Train on the labelled rows."""
        rows = np.flatnonzero(~np.isnan(y)).tolist()
        if not rows:
            raise PoolError("y has no label yet: give at least one, there is nothing to learn from")
        known = set(self._seen)
        if not known < set(rows):
            self.method.load_state_dict({}, self.model_factory)
            known = set()
        order = [*(n for n in self._seen if n in known), *(n for n in rows if n not in known)]
        targets = torch.as_tensor(y[order])
        with seeded(self.seed):
            if self.likelihood.kind == "categorical":
                targets = targets.long()
            else:
                width = self.model_factory()(x[:1]).ndim
                targets = targets.float().reshape(-1, *([1] * (width - 1)))
            self.method.update(
                self.model_factory, self.likelihood, x[order], targets,
                new=torch.arange(len(known), len(order)), seed=self.seed,
            )  # fmt: skip
        self._seen = order
