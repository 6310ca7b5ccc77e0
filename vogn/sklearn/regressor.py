"""A Bayesian regression with scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from vogn.likelihoods import Gaussian
from vogn.sklearn.estimator import NaturalGradientEstimator


class VOGNRegressor(RegressorMixin, NaturalGradientEstimator):
    """Regression with a neural network whose predictions average over a posterior of its weights.

    Inputs and targets are standardised inside; the noise, one number for all standardised targets, is learned with the
    weights. Equal data, options and ``random_state`` give equal weights and predictions, bit by bit, on one machine and
    number of threads. There is no ``sample_weight``: with weights of their own a mini-batch's examples would not count
    as repeated ones do.

    Args:
        method, variational, hidden_layer_sizes, activation, steps, batch_size, lr, prior_precision, temperature,
            samples, method_options, device, random_state, verbose: see :class:`VOGNClassifier`.
        module: as there; it returns ``(N, targets)``.

    Attributes:
        noise_: standard deviation of the noise in the unit of the targets, a number or ``(targets,)``.
        network_, posterior_, likelihood_, lr_, prior_precision_, loss_curve_, n_steps_: see :class:`VOGNClassifier`;
            for standardised inputs *and targets*.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from vogn.sklearn import VOGNRegressor
        >>> X, y = load_diabetes(return_X_y=True)
        >>> model = VOGNRegressor(steps=300, random_state=0).fit(X[::2], y[::2])
        >>> mean, std = model.predict(X[1::2], return_std=True)
        >>> inside = abs(y[1::2] - mean) < 1.645 * std
        >>> 0.8 < float(inside.mean()) < 1.0  # a 90 % interval
        True
    """

    def fit(self, X: Any, y: Any) -> VOGNRegressor:
        """Train a new network.

        Args:
            X: inputs, ``(n, features)``; with ``module``, of any shape ``(n, ...)``.
            y: targets, ``(n,)`` or ``(n, targets)``.

        Raises:
            ValueError: for NaN, shapes that do not fit, or an option out of range.
        """
        X, y = self._validated(X, y, reset=True)
        self._begin(X, y)
        self._train(self._inputs(X), self._targets(y))
        self._set_noise()
        return self

    def partial_fit(self, X: Any, y: Any) -> VOGNRegressor:
        """One epoch of *new* examples: the posterior narrows as if all examples so far had been seen together.

        The first call fixes the scale of inputs and targets.

        Args:
            X, y: see :meth:`fit`.
        """
        first = not hasattr(self, "_training")
        X, y = self._validated(X, y, reset=first)
        if first:
            self._begin(X, y)
        elif y.shape[1:] != self._target_shape:
            raise ValueError(f"y has shape {y.shape}, but in the first call a target had {self._target_shape}")
        self._train_more(self._inputs(X), self._targets(y))
        self._set_noise()
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The predictive mean, and the standard deviation of an observation (weights and noise).

        Args:
            X: inputs.
            return_std: also return the standard deviation.

        Returns:
            ``(n,)`` or ``(n, targets)``, in the unit of the targets; a pair of them with ``return_std``.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        found = self._predict(X, keep_samples=False)
        mean = self._target_scaler.inverse_transform(_array(found.mean)).reshape(-1, *self._target_shape)
        if not return_std:
            return mean
        std = _array(found.variance.sqrt()) * self._target_scaler.scale_
        return mean, std.reshape(-1, *self._target_shape)

    def predict_interval(self, X: Any, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the central interval of observations, in which a target lies with probability ``level``.

        Args:
            X: inputs.
            level: in (0, 1).

        Returns:
            Lower and upper ends, in the shape of :meth:`predict`.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        low, high = (
            self._target_scaler.inverse_transform(_array(end)).reshape(-1, *self._target_shape)
            for end in self._predict(X).interval(level)
        )
        return low, high

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw observations, each with one set of weights for all inputs and noise of its own.

        Args:
            X: inputs.
            n_samples: number of draws, >= 1.
            random_state: of weights and noise.

        Returns:
            ``(n, n_samples)`` or ``(n, targets, n_samples)``.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        source = check_random_state(random_state)
        seed = int(source.randint(2**31 - 1))
        link = {} if self.variational else {"link": "mc"}
        found = self._predict(X, samples=n_samples, seed=seed, **link).samples
        assert found is not None
        draws = _array(found) + self._noise * source.standard_normal(tuple(found.shape))
        scaled = draws * self._target_scaler.scale_ + self._target_scaler.mean_
        return np.moveaxis(scaled, 0, -1).reshape(len(X), *self._target_shape, n_samples)

    def _begin(self, X: np.ndarray, y: np.ndarray) -> None:
        self._target_shape = y.shape[1:]
        columns = y.reshape(len(y), -1)
        self._target_scaler = StandardScaler().fit(columns)
        self._start(X, columns.shape[1], labels=False)

    def _targets(self, y: np.ndarray) -> Tensor:
        scaled = self._target_scaler.transform(y.reshape(len(y), -1))
        like = next(p for p in self.network_.parameters() if p.is_floating_point())
        return torch.from_numpy(np.ascontiguousarray(scaled)).to(like)

    @property
    def _noise(self) -> float:
        """Standard deviation of the noise of standardised targets."""
        assert isinstance(self.likelihood_, Gaussian)
        return float(torch.as_tensor(self.likelihood_.noise).detach())

    def _set_noise(self) -> None:
        noise = self._noise * self._target_scaler.scale_
        self.noise_ = float(noise[0]) if self._target_shape == () else noise

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(
            self,
            X,
            y,
            reset=reset,
            ensure_min_samples=2 if reset else 1,
            allow_nd=self.module is not None,
            multi_output=True,
            y_numeric=True,
        )
        return X, np.asarray(y, dtype=np.float64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
