"""Scores that say how far an input is from the training data, by name; larger means farther."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vogn.predict.predictive import Predictive


def _largest_probability(predictive: Predictive) -> Tensor:
    """Minus the probability of the most probable class."""
    return -predictive.mean.amax(-1)


def _entropy(predictive: Predictive) -> Tensor:
    """The whole uncertainty."""
    return _per_term(predictive, predictive.total)


def _mutual_information(predictive: Predictive) -> Tensor:
    """What knowing the weights would take away."""
    return _per_term(predictive, predictive.epistemic)


def _variance(predictive: Predictive) -> Tensor:
    """Variance between weight samples of the probabilities, or of the outputs, summed over them."""
    real = predictive.aleatoric.shape == predictive.mean.shape
    return _per_term(predictive, predictive.epistemic if real else predictive.variance)


def _energy(predictive: Predictive) -> Tensor:
    """Small where some logit is large."""
    if predictive.energy is None:
        raise ValueError(f"the energy is one of logits of classes, which {predictive.likelihood!r} does not have")
    return predictive.energy


def _per_term(predictive: Predictive, values: Tensor) -> Tensor:
    """Sum over the outputs of a term, where there is one value for each."""
    return values.sum(-1) if values.shape == predictive.mean.shape and values.ndim > 1 else values


OOD_SCORES: Mapping[str, Callable[[Predictive], Tensor]] = {
    "energy": _energy,
    "entropy": _entropy,
    "max_probability": _largest_probability,
    "mutual_information": _mutual_information,
    "variance": _variance,
}
"""Name to score."""


def ood_score(predictive: Predictive, score: str = "entropy") -> Tensor:
    """How far each input is from the training data; larger means farther.

    ``"max_probability"``: minus the probability of the predicted class. ``"entropy"``: the total uncertainty.
    ``"mutual_information"``: its epistemic part. ``"variance"``: variance between weight samples of the probabilities
    or outputs, summed. ``"energy"``: minus the log of the summed exponentials of the logits.

    Args:
        predictive: from :func:`vogn.predict`.
        score: a name of the above.

    Returns:
        ``(N, ...)``; ``sklearn.metrics.roc_auc_score(is_ood, score)`` says how well it separates.

    Raises:
        ValueError: for an unknown name, or the energy of outputs that are no logits of classes.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Linear(2, 3)
        >>> found = vogn.predict(model, vogn.Point(model, likelihood=vogn.likelihoods.Categorical()), torch.zeros(4, 2))
        >>> tuple(vogn.ood_score(found, "energy").shape)
        (4,)

    Source: Hendrycks and Gimpel (2017) for the largest probability; Smith and Gal (2018), "Understanding Measures of
    Uncertainty for Adversarial Example Detection", for entropy and mutual information; Liu et al. (2020), energy.
    """
    if score not in OOD_SCORES:
        raise ValueError(f"unknown score {score!r}; known scores: {', '.join(sorted(OOD_SCORES))}")
    return OOD_SCORES[score](predictive)
