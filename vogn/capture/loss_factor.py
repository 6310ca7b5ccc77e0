"""Notices a loss that is multiplied by something nobody has told the optimizer about."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall
from vogn.capture.taps import is_muted

LARGEST = 32.0
"""A larger factor is a gradient scaler's, or a batch's sum: weights of tasks and of accumulated batches are smaller."""


class LossFactor:
    """Compares the gradient that reaches the outputs of a likelihood with that of its mean loss, until one has been.

    Args:
        reduction: of the loss over its terms, as the optimizer was told.
    """

    def __init__(self, reduction: Literal["mean", "sum"]) -> None:
        self._reduction = reduction
        self._open = True
        self._found: Tensor | None = None

    def watch(self, call: LikelihoodCall, *, scaled: bool) -> None:
        """Look at the gradient of a call's outputs, if none has been looked at yet.

        Args:
            call: with its outputs in the graph.
            scaled: whether the optimizer knows a gradient scaler: there is nothing to find then.
        """
        plain = call.targets is not None and call.mask is None and isinstance(call.weight, float)
        if not self._open or scaled or not plain:
            return
        with torch.no_grad():
            score = call.likelihood.score(call.outputs.detach(), call.targets)
            expected = score * (float(call.weight) / (call.count if self._reduction == "mean" else 1))

        def look(grad: Tensor) -> None:
            if is_muted():
                return  # a pass of our own
            self._open = False
            self._found = (grad * expected).sum() / expected.square().sum()

        call.outputs.register_hook(look)

    def check(self) -> None:
        """Warn if a factor was found that is too large to be meant; waits for the device once."""
        found, self._found = self._found, None
        if found is not None and float(found) > LARGEST:
            warnings.warn(
                f"the gradient at the outputs is {float(found):.6g} times that of the mean loss, and the curvature "
                "will be too large by the square of that: set opt.grad_scaler = scaler if a GradScaler multiplies the "
                "loss, pass loss_reduction='sum' if it is a sum over the batch, or scale it with weight=",
                stacklevel=2,
            )
