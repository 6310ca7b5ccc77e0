"""The effective sample size: how many examples the posterior has seen."""

from __future__ import annotations

import math
from collections.abc import Sized
from numbers import Real
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, SubsetRandomSampler

SampleSize = float | Literal["auto"] | None
"""What optimizers take as ``ess``: a number, ``"auto"`` (counted in ``data``), or ``None`` where nothing is sampled."""


def effective_sample_size(
    data: Sized | DataLoader[object] | float,
    *,
    augmentation_factor: float = 1.0,
    temperature: float = 1.0,
    terms_per_example: float = 1.0,
) -> float:
    """``ess = examples * terms_per_example * augmentation_factor / temperature``.

    Args:
        data: the training data: a ``DataLoader`` (its data set is counted, not its batches; of a
            ``SubsetRandomSampler``, or a list or range as sampler, the subset, and of a ``DistributedSampler`` all
            processes' examples), a data set, tensor or array, or the number of examples. Lists are refused: they could
            hold examples or batches.
        augmentation_factor: how many times larger augmentation makes the data, > 0; 1 without augmentation, about 10
            for crops and flips. :attr:`vogn.data.Data.augmentation_factor` knows it for the data of this library.
        temperature: > 0; 1 is Bayes' rule, below 1 the posterior is narrower.
        terms_per_example: terms of the mean loss per example, > 0: tokens of a sentence, pixels of a segmentation.

    Returns:
        The number for ``ess=``, in loss terms.

    Raises:
        TypeError: if the examples cannot be counted.
        ValueError: if there are none, or a number is out of range.

    Example:
        >>> import torch, vogn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.randn(100, 3)), batch_size=32)
        >>> vogn.effective_sample_size(loader, augmentation_factor=5, temperature=0.5)
        1000.0

    Source: Osawa et al. (2019), "Practical Deep Learning with Bayesian Principles", section 3 (the factors).
    """
    for name, value in (
        ("augmentation_factor", augmentation_factor),
        ("temperature", temperature),
        ("terms_per_example", terms_per_example),
    ):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be a positive finite number")
    examples = _count(data)
    if not 0 < examples < math.inf:
        raise ValueError(f"the data hold {examples:g} examples; a posterior needs at least one")
    return examples * terms_per_example * augmentation_factor / temperature


def _count(data: Sized | DataLoader[object] | float) -> float:
    """Number of training examples."""
    if isinstance(data, (int, float, Real)) or (isinstance(data, (Tensor, np.ndarray)) and data.ndim == 0):
        return float(data)
    if isinstance(data, (list, tuple, dict, str)):
        raise TypeError(
            f"a {type(data).__name__} does not tell whether it holds examples or batches: pass the number of training "
            "examples, a data set, or a DataLoader"
        )
    if isinstance(data, DataLoader):
        sampler: Any = getattr(data.batch_sampler, "sampler", data.sampler)
        if isinstance(sampler, (SubsetRandomSampler, list, tuple, range)):
            return float(len(sampler))  # always the same examples
        return _count(data.dataset)  # type: ignore[arg-type]
    try:
        return float(len(data))
    except TypeError as error:
        raise TypeError(
            f"{type(data).__name__} does not know how many examples it has: pass their number, for example "
            "ess=vogn.effective_sample_size(50_000)"
        ) from error


def resolved(ess: SampleSize, data: object) -> float | None:
    """The number that ``ess`` and ``data`` of an optimizer amount to.

    Raises:
        ValueError: if one of the two is missing, or ``ess`` is another word.
        TypeError: see :func:`effective_sample_size`.
    """
    if isinstance(ess, str):
        if ess != "auto":
            raise ValueError(f"ess={ess!r}: give a number, or 'auto' together with data=train_loader")
        if data is None:
            raise ValueError(
                "ess='auto' counts the training examples: pass data=train_loader (or the data set, or their number). "
                "With augmentation or a temperature pass ess=vogn.effective_sample_size(train_loader, "
                "augmentation_factor=..., temperature=...)"
            )
        return effective_sample_size(data)  # type: ignore[arg-type]
    if data is not None:
        raise ValueError(f"data= is for ess='auto', but ess={ess}; leave one of them out")
    return ess
