"""How much there is to learn from one example: scores that are large where a label is worth asking for.

Probabilities and outputs of weight samples come first: ``(S, N, C)`` for ``S`` samples, ``N`` examples and ``C``
classes (or outputs). All scores are ``(N,)``; entropies and information are in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_samples(values: Tensor, name: str, *, probabilities: bool = True) -> None:
    """Raise unless these are values of weight samples, ``(S, N, C)``.

    Raises:
        ValueError: for another shape, no examples, NaN, or numbers that are no probabilities.
    """
    if values.ndim != 3 or not values.numel():
        raise ValueError(f"{name} must have shape (S, N, C), samples first, none of them 0; got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise ValueError(f"{name} must be floating-point numbers, got {values.dtype}")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinity; check the inputs and the training")
    if probabilities:
        tolerance = 1e-3 if values.dtype != torch.float64 else 1e-6
        off = (values.sum(-1) - 1).abs().max()
        if bool(values.min() < 0) or bool(off > tolerance):
            raise ValueError(f"{name} must be probabilities: not negative, with sum 1 over the last dimension")


def label_entropy(probabilities: Tensor) -> Tensor:
    """``-sum_c p_c log p_c`` over the last dimension, in nats; ``(..., C)`` to ``(...)``."""
    return torch.special.entr(probabilities).sum(-1)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the average over weight samples, ``H[E p]``: what is unknown for any reason.

    Args:
        probabilities: ``(S, N, C)``.

    Returns:
        ``(N,)``, in ``[0, log C]``.
    """
    check_samples(probabilities, "probabilities")
    return label_entropy(probabilities.mean(0))


def margin(probabilities: Tensor) -> Tensor:
    """Minus the difference of the two largest averaged probabilities.

    Args:
        probabilities: ``(S, N, C)``, ``C >= 2``.

    Returns:
        ``(N,)``, in ``[-1, 0]``.

    Source: Scheffer, Decomain, Wrobel (2001), "Active Hidden Markov Models for Information Extraction".
    """
    check_samples(probabilities, "probabilities")
    if probabilities.shape[-1] < 2:
        raise ValueError("a margin needs at least two classes")
    first, second = probabilities.mean(0).topk(2, -1).values.unbind(-1)
    return second - first


def variation_ratio(probabilities: Tensor) -> Tensor:
    """One minus the largest averaged probability, also called least confidence.

    Args:
        probabilities: ``(S, N, C)``.

    Returns:
        ``(N,)``, in ``[0, 1 - 1 / C]``.

    Source: Freeman (1965), "Elementary Applied Statistics"; Gal, Islam, Ghahramani (2017), section 3.
    """
    check_samples(probabilities, "probabilities")
    return 1.0 - probabilities.mean(0).amax(-1)


def bald(probabilities: Tensor) -> Tensor:
    """Mutual information of label and weights, ``H[E p] - E H[p]``: what knowing the weights would tell.

    Args:
        probabilities: ``(S, N, C)``.

    Returns:
        ``(N,)``, in ``[0, log C]``.

    Source: Houlsby et al. (2011), "Bayesian Active Learning for Classification and Preference Learning", eq. 2; Gal,
    Islam, Ghahramani (2017), "Deep Bayesian Active Learning with Image Data".
    """
    check_samples(probabilities, "probabilities")
    return (label_entropy(probabilities.mean(0)) - label_entropy(probabilities).mean(0)).clamp_min(0.0)


def mean_deviation(probabilities: Tensor) -> Tensor:
    """Standard deviation of the probabilities over weight samples, averaged over the classes.

    Args:
        probabilities: ``(S, N, C)``.

    Returns:
        ``(N,)``, in ``[0, 1 / 2]``.

    Source: Kampffmeyer, Salberg, Jenssen (2016), as in Gal, Islam, Ghahramani (2017), section 3.
    """
    check_samples(probabilities, "probabilities")
    return probabilities.std(0, correction=0).mean(-1)


def information_gain(variance: Tensor, noise_variance: Tensor | float) -> Tensor:
    """What an observation with Gaussian noise tells about the weights, ``0.5 sum_k log(1 + v_k / noise^2)``.

    For one output it is the fall of the posterior's entropy, exact where outputs are linear in Gaussian weights. For
    several outputs it takes them as uncorrelated, which is an upper bound. It grows with the variance, so for one
    output it chooses as :func:`predictive_variance` does under one noise.

    Args:
        variance: of the outputs over the weights, without noise, ``(N, K)``, >= 0.
        noise_variance: of the observations, > 0; a number, or in the shape of ``variance``.

    Returns:
        ``(N,)``, in nats.

    Raises:
        ValueError: for a negative variance, a noise that is not positive, NaN, or another shape.

    Source: MacKay (1992), "Information-Based Objective Functions for Active Data Selection", eq. 4.
    """
    predictive_variance(variance)
    noise = torch.as_tensor(noise_variance, dtype=variance.dtype, device=variance.device)
    if not bool(((noise > 0) & noise.isfinite()).all()):
        raise ValueError("the noise's variance must be positive and finite: noiseless data tell infinitely much")
    return 0.5 * (variance / noise).log1p().sum(-1)


def predictive_variance(variance: Tensor) -> Tensor:
    """Variance of the outputs over the weights, summed over the outputs.

    Args:
        variance: ``(N, K)``, >= 0.

    Returns:
        ``(N,)``, in the square of the targets' unit.

    Raises:
        ValueError: for a negative variance, NaN, or another shape.
    """
    if variance.ndim != 2 or not variance.numel():
        raise ValueError(f"variances must have shape (N, K), neither of them 0; got {tuple(variance.shape)}")
    if not bool(((variance >= 0) & variance.isfinite()).all()):
        raise ValueError("variances must be finite and not negative")
    return variance.sum(-1)
