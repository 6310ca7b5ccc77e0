"""Scores that say how far an input is from the training data, by name; larger means farther."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vogn.predict.predictive import Predictive


def _largest_probability(predictive: Predictive) -> Tensor:
    """Minus the probability of the most probable label."""
    confidence = predictive.likelihood.confidence(predictive.mean)
    if confidence is None:
        raise ValueError(f"the largest probability is one of labels, which {predictive.likelihood!r} does not have")
    return -confidence


def _entropy(predictive: Predictive) -> Tensor:
    """The whole uncertainty."""
    return _per_term(predictive, predictive.total)


def _mutual_information(predictive: Predictive) -> Tensor:
    """What knowing the weights would take away."""
    return _per_term(predictive, predictive.epistemic)


def _variance(predictive: Predictive) -> Tensor:
    """Variance between weight samples of the probabilities, or of the outputs, summed over them."""
    real = predictive.likelihood.confidence(predictive.mean) is None
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

    ``"max_probability"``: minus the probability of the predicted label; labels only. ``"entropy"``: the total
    uncertainty. ``"mutual_information"``: its epistemic part. ``"variance"``: variance between weight samples of the
    probabilities or outputs, summed. ``"energy"``: minus the log of the summed exponentials of the logits.

    Args:
        predictive: from :func:`vogn.predict`.
        score: a name of the above.

    Returns:
        ``(N, ...)``; :func:`vogn.metrics.auroc` says how well it separates two kinds of inputs.

    Raises:
        ValueError: for an unknown name, the largest probability of real targets, or the energy of outputs that are no
            logits of classes.

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


def ood_scores(predictive: Predictive) -> dict[str, Tensor]:
    """Every score of :func:`ood_score` that these predictions have, by name, as :func:`vogn.metrics.ood_report` takes.

    The energy needs logits of classes, the largest probability labels.

    Args:
        predictive: from :func:`vogn.predict`.

    Returns:
        Name to ``(N, ...)``.
    """
    real = predictive.likelihood.confidence(predictive.mean) is None
    left_out = {"max_probability"} if real else set()
    if predictive.energy is None:
        left_out.add("energy")
    return {name: score(predictive) for name, score in OOD_SCORES.items() if name not in left_out}
