"""Validated inputs of every metric: class probabilities with labels, real predictions with targets."""

from __future__ import annotations

import torch
from torch import Tensor


def class_rows(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Validated class probabilities ``(M, C)`` in float32 at least, and labels ``(M,)``."""
    p = probability_values(probabilities)
    labels = class_labels(targets, probabilities.shape)
    if targets.shape == probabilities.shape:
        return two_columns(p), labels
    p = p.reshape(-1, p.shape[-1])
    check_normalised(p, probabilities.dtype)
    return p, labels


def probability_values(probabilities: Tensor) -> Tensor:
    """The probabilities in float32 at least, unless some are none or there are none."""
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities have dtype {probabilities.dtype}; a floating-point dtype is needed")
    if probabilities.numel() == 0:
        raise ValueError(f"probabilities have shape {tuple(probabilities.shape)}: there is nothing to measure")
    p = probabilities.detach() if probabilities.dtype == torch.float64 else probabilities.detach().float()
    if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
        raise ValueError(
            f"probabilities range from {float(p.min()):g} to {float(p.max()):g}; give values in [0, 1], not logits"
        )
    return p


def two_columns(p: Tensor) -> Tensor:
    """Probabilities of labels 0 and 1, ``(M, 2)``, from those of label 1."""
    return torch.stack([1 - p.reshape(-1), p.reshape(-1)], -1)


def class_labels(targets: Tensor, shape: torch.Size, name: str = "probabilities") -> Tensor:
    """Validated labels ``(M,)``, int64, of predictions of this shape: ``(N, ..., C)``, or that of the targets."""
    if targets.shape == shape:
        labels = targets.reshape(-1)
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(f"targets of the shape of the {name} must be 0 or 1")
        return labels.long()
    if targets.shape != shape[:-1] or shape[-1] < 2:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} but {name} {tuple(shape)}; give "
            "(N, ..., C) with targets (N, ...) and C >= 2, or one shape for both"
        )
    labels = targets.reshape(-1)
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"targets have dtype {targets.dtype}; class indices of an integer dtype are needed")
    labels = labels.long()
    if bool(((labels < 0) | (labels >= shape[-1])).any()):
        raise ValueError(
            f"targets range from {int(labels.min())} to {int(labels.max())}; 0 to {shape[-1] - 1} is allowed"
        )
    return labels


def check_normalised(p: Tensor, given: torch.dtype) -> None:
    """Raise ValueError unless the rows sum to 1, as far as the dtype that they were given in can tell."""
    tolerance = 1e-3 if given.itemsize >= 4 else 3e-2  # each of C half-precision values is rounded
    worst = float((p.sum(-1) - 1).abs().max())
    if worst > tolerance:
        raise ValueError(f"probabilities miss a sum of 1 over the last dimension by up to {worst:g}; normalise them")


def real_pair(mean: Tensor, targets: Tensor, name: str = "targets", mean_name: str = "mean") -> tuple[Tensor, Tensor]:
    """Two validated real tensors of one shape in float32 at least."""
    if mean.shape != targets.shape:
        raise ValueError(
            f"{mean_name} has shape {tuple(mean.shape)} but {name} {tuple(targets.shape)}; they must be equal"
        )
    if mean.numel() == 0:
        raise ValueError(f"{mean_name} has shape {tuple(mean.shape)}: there is nothing to measure")
    dtype = torch.float64 if torch.float64 in (mean.dtype, targets.dtype) else torch.float32
    f, y = mean.detach().to(dtype), targets.detach().to(dtype)
    if not bool((torch.isfinite(f) & torch.isfinite(y)).all()):
        raise ValueError(f"{mean_name} or {name} hold NaN or infinite values")
    return f, y


def real_samples(samples: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Validated samples ``(S, ...)`` of targets ``(...)``, in float32 at least."""
    if samples.ndim != targets.ndim + 1 or samples.shape[1:] != targets.shape:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)} but targets {tuple(targets.shape)}; "
            "one dimension of samples before those of the targets is needed"
        )
    if samples.numel() == 0:
        raise ValueError(f"samples have shape {tuple(samples.shape)}: there is nothing to measure")
    x, _ = real_pair(samples, samples, name="samples")
    y, _ = real_pair(targets, targets)
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def positive(variance: Tensor) -> Tensor:
    """The variance, unless some of it is not positive."""
    if not bool((variance > 0).all()):
        raise ValueError(f"the smallest variance is {float(variance.min()):g}; every variance must be positive")
    if not bool(torch.isfinite(variance).all()):
        raise ValueError("variance holds NaN or infinite values")
    return variance


def check_level(level: float, name: str = "level") -> None:
    """Raise ValueError unless the probability lies strictly between 0 and 1."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"{name}={level} must lie between 0 and 1, for example 0.9")
