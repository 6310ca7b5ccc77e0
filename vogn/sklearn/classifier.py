"""A Bayesian classifier with scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from vogn.sklearn.estimator import NaturalGradientEstimator


class VOGNClassifier(ClassifierMixin, NaturalGradientEstimator):
    """Classifier whose probabilities are averaged over a posterior of a neural network's weights.

    Inputs are standardised inside. Equal data, options and ``random_state`` give equal weights and predictions, bit by
    bit, on one machine and number of threads. There is no ``sample_weight``: with weights of their own a mini-batch's
    examples would not count as repeated ones do.

    Args:
        method: key of :data:`vogn.METHODS`.
        variational: ``True``: weights are sampled in training and predictions average over the posterior that was
            learned. ``False``: the network is trained at its mean, and gets a Kronecker-factored Laplace approximation
            (:func:`vogn.laplace`), whose predictions are those of the linearised network.
        module: a network, which is copied, or a function of the numbers of features and outputs that returns one; it
            returns logits ``(N, classes)``. ``None``: a perceptron in double precision.
        hidden_layer_sizes: units of the perceptron's hidden layers.
        activation: ``"relu"`` or ``"tanh"``, of the perceptron.
        steps: optimisation steps, >= 1, whatever the size of the data. Nothing stops them early.
        batch_size: examples per step, >= 1.
        lr: peak of the learning rate, > 0; ``None``: what suits the method on small tables;
            ``"range_test"``: :func:`vogn.learning_rate_range_test` chooses it on the training data.
        prior_precision: > 0, or ``"evidence"``: a precision for every layer, from the evidence of the Laplace
            approximation in the second half of the run (and 1 in the first, and in :meth:`partial_fit`).
        temperature: of the posterior, > 0; 1 is Bayes' rule, below it is narrower.
        samples: weight samples of a prediction, >= 1.
        method_options: further keyword arguments of the method's optimizer.
        device: where the network lives.
        random_state: ``None``, a number or a ``numpy.random.RandomState``.
        verbose: show a progress bar on standard error.

    Attributes:
        classes_: the labels, ``(classes,)``.
        network_: the trained :class:`torch.nn.Module`, at the mean weights, for *standardised* inputs.
        posterior_: the :class:`vogn.GaussianPosterior`.
        likelihood_: the observation model.
        lr_: peak of the learning rate.
        prior_precision_: ``{block: ess * weight_decay}``.
        loss_curve_: loss of every step, under the weights that it saw.
        n_steps_: number of steps so far.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from vogn.sklearn import VOGNClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = VOGNClassifier(steps=300, random_state=0).fit(X[::2], y[::2])
        >>> model.score(X[1::2], y[1::2]) > 0.9
        True
        >>> model.predict_proba(X[:2]).shape
        (2, 3)
    """

    def fit(self, X: Any, y: Any) -> VOGNClassifier:
        """Train a new network.

        Args:
            X: inputs, ``(n, features)``; with ``module``, of any shape ``(n, ...)``.
            y: labels, ``(n,)``, of two classes or more.

        Raises:
            ValueError: for NaN, shapes that do not fit, a single class, or an option out of range.
        """
        X, y = self._validated(X, y, reset=True)
        self.classes_ = unique_labels(y)
        if len(self.classes_) < 2:
            raise ValueError(f"the labels hold one class, {self.classes_[0]!r}; a classifier needs two or more")
        self._start(X, len(self.classes_), labels=True)
        self._train(self._inputs(X), self._targets(y))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> VOGNClassifier:
        """One epoch of *new* examples: the posterior narrows as if all examples so far had been seen together.

        The first call fixes the scale of the inputs.

        Args:
            X, y: see :meth:`fit`.
            classes: all labels that will ever come; needed in the first call.

        Raises:
            ValueError: see :meth:`fit`; if the first call has no ``classes``, or a label is not one of them.
        """
        first = not hasattr(self, "_training")
        X, y = self._validated(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit")
            self.classes_ = unique_labels(classes)
            self._check_labels(y)
            self._start(X, len(self.classes_), labels=True)
        elif classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"classes={classes!r} is not the same as on the first call, {self.classes_!r}")
        self._check_labels(y)
        self._train_more(self._inputs(X), self._targets(y))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, ``(n, classes)``, averaged over the weight samples."""
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        mean = self._predict(X, keep_samples=False).mean.double().cpu().numpy()
        return mean / mean.sum(1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of every example, ``(n,)``."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]

    def uncertainty(self, X: Any) -> dict[str, np.ndarray]:
        """Entropies of the label in nats, ``(n,)`` each.

        Returns:
            ``"total"``: of the averaged probabilities; ``"aleatoric"``: what would remain if the weights were known;
            ``"epistemic"``: their difference, the mutual information of label and weights.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        found = self._predict(X, keep_samples=False)
        return {name: getattr(found, name).double().cpu().numpy() for name in ("total", "aleatoric", "epistemic")}

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draw labels, each column with one set of weights for all examples.

        Args:
            X: inputs.
            n_samples: number of draws, >= 1.
            random_state: of weights and labels.

        Returns:
            Labels ``(n, n_samples)``.
        """
        check_is_fitted(self, "posterior_")
        X = validate_data(self, X, reset=False, allow_nd=self.module is not None)
        source = check_random_state(random_state)
        seed = int(source.randint(2**31 - 1))
        link = {} if self.variational else {"link": "mc"}
        found = self._predict(X, samples=n_samples, seed=seed, **link).samples
        assert found is not None
        levels = found.double().cpu().cumsum(-1).numpy()
        draws = source.random_sample((*levels.shape[:2], 1)) * levels[..., -1:]
        return self.classes_[(levels < draws).sum(-1).T]

    def _validated(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(
            self, X, y, reset=reset, ensure_min_samples=2 if reset else 1, allow_nd=self.module is not None
        )
        check_classification_targets(y)
        return X, y

    def _check_labels(self, y: np.ndarray) -> None:
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y holds labels that are not in classes: {unknown[:5]}; known are {self.classes_}")

    def _targets(self, y: np.ndarray) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.classes_, y)).to(next(self.network_.parameters()).device)
