"""Expected predictive information gain: what a label tells about predictions at the inputs that matter."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.active.scores import check_samples, label_entropy

JOINT_NUMBERS = 1 << 22
"""Numbers of the joint distributions that are held at a time."""


def epig(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mutual information of the label of a pool example and the label of a target input, averaged over target inputs.

    BALD asks what a label tells about the weights, relevant or not; this asks what it tells about predictions where
    they will be made. Costs ``S N M C^2`` multiplications, and memory for :data:`JOINT_NUMBERS`.

    Args:
        probabilities: of the pool, ``(S, N, C)``.
        targets: of the target inputs under the same weight samples, ``(S, M, C')``.

    Returns:
        ``(N,)``, in nats, in ``[0, log C]``.

    Raises:
        ValueError: if shapes do not fit, or these are no probabilities.

    Source: Bickford Smith et al. (2023), "Prediction-Oriented Bayesian Active Learning", eq. 5.
    """
    _check(probabilities, targets, probabilities_wanted=True)
    samples, count, classes = probabilities.shape
    own = label_entropy(probabilities.mean(0))
    theirs = label_entropy(targets.mean(0)).mean()
    second = targets.flatten(1) / samples
    chunk = max(1, JOINT_NUMBERS // (classes * second.shape[1]))
    joint = []
    for part in probabilities.split(chunk, 1):
        both = part.flatten(1).T @ second  # (n C, M C')
        joint.append(torch.special.entr(both).view(part.shape[1], -1).sum(1) / targets.shape[1])
    return (own + theirs - torch.cat(joint)).clamp_min(0.0)


def gaussian_epig(outputs: Tensor, targets: Tensor, noise_variance: Tensor | float) -> Tensor:
    """The same for real targets with Gaussian noise: ``-0.5 log(1 - r^2)`` for the correlation ``r`` of observations.

    Outputs of a pool example and of a target input are taken as jointly Gaussian with the covariance of the weight
    samples; several outputs as uncorrelated with one another.

    Args:
        outputs: of the pool, ``(S, N, K)``, ``S >= 2``.
        targets: at the target inputs under the same weight samples, ``(S, M, K)``.
        noise_variance: of an observation, > 0: a number, or ``(K,)``.

    Returns:
        ``(N,)``, in nats.

    Raises:
        ValueError: if shapes do not fit, or the noise is not positive.

    Source: Bickford Smith et al. (2023), appendix E (regression).
    """
    _check(outputs, targets, probabilities_wanted=False)
    if len(outputs) < 2 or outputs.shape[2] != targets.shape[2]:
        raise ValueError("a covariance needs at least two weight samples, and outputs of one kind")
    noise = torch.as_tensor(noise_variance, dtype=outputs.dtype, device=outputs.device)
    if not bool((noise > 0).all()):
        raise ValueError("the noise's variance must be positive")
    own, other = outputs - outputs.mean(0), targets - targets.mean(0)
    covariance = torch.einsum("snk,smk->nmk", own, other) / len(outputs)
    total = own.square().mean(0) + noise
    squared = covariance.square() / (total.unsqueeze(1) * (other.square().mean(0) + noise))
    return -0.5 * (-squared).log1p().sum(-1).mean(1)


def _check(pool: Tensor, targets: Tensor, *, probabilities_wanted: bool) -> None:
    check_samples(pool, "the pool's values", probabilities=probabilities_wanted)
    check_samples(targets, "the target inputs' values", probabilities=probabilities_wanted)
    if len(pool) != len(targets):
        raise ValueError(
            f"pool and target inputs need the same weight samples, got {len(pool)} and {len(targets)}: predict both "
            "with one seed"
        )
