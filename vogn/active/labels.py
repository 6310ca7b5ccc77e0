"""Labels as they come from a person or a program: checked one by one, then targets of a likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vogn.active.errors import LabelError
from vogn.likelihoods import Likelihood

Label = int | float | list[float]
"""Plain data: a class, a number, or a number for every output."""


class LabelRule:
    """What labels of an observation model look like.

    Args:
        likelihood: categorical, Bernoulli or Gaussian.
        outputs: of the network, of any examples, ``(n, K)`` or ``(n,)``.

    Raises:
        ValueError: if outputs of this shape do not mean one label, or one vector of numbers, per example.
    """

    def __init__(self, likelihood: Likelihood, outputs: Tensor) -> None:
        self.kind = likelihood.kind
        self.shape = tuple(outputs.shape[1:])
        single = self.shape in ((), (1,))
        fits = {"categorical": len(self.shape) == 1, "bernoulli": single, "gaussian": len(self.shape) <= 1}
        if not fits.get(self.kind, False):
            raise ValueError(
                f"the model's outputs have shape (n, {', '.join(map(str, self.shape))}) per batch; active learning "
                f"under {likelihood!r} needs one label per example"
            )
        self.dtype = torch.int64 if self.kind == "categorical" else outputs.dtype

    def check(self, label: Any, index: int) -> Label:
        """The label as plain data.

        Args:
            label: what was given: a number, or a tensor or sequence of numbers.
            index: of the example, for messages.

        Raises:
            LabelError: saying what is wrong with it.
        """
        try:
            numbers = torch.as_tensor(label).flatten().double().tolist()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LabelError(f"example {index}: the label {label!r} is no number") from error
        wanted = math.prod(self.shape) if self.kind == "gaussian" else 1
        if len(numbers) != wanted:
            raise LabelError(f"example {index}: the label holds {len(numbers)} numbers, {wanted} wanted")
        if not all(math.isfinite(number) for number in numbers):
            raise LabelError(f"example {index}: the label is {label}; a label must be finite")
        if self.kind == "gaussian":
            return numbers if len(numbers) > 1 else numbers[0]
        classes = self.shape[0] if self.kind == "categorical" else 2
        value = numbers[0]
        if value != int(value) or not 0 <= value < classes:
            raise LabelError(f"example {index}: the label {value:g} is no class; classes are 0 to {classes - 1}")
        return int(value)

    def targets(self, labels: list[Label]) -> Tensor:
        """Checked labels in the form that the likelihood expects: ``(n,)`` of classes, else like the outputs."""
        found = torch.tensor(labels, dtype=self.dtype)
        return found if self.kind == "categorical" else found.reshape(len(labels), *self.shape)
