"""A head for each task over one body."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class MultiHead(nn.Module):
    """A body and linear heads, of which one is in use.

    Args:
        body: from inputs ``(N, ...)`` to features ``(N, features)``.
        features: number of features, >= 1.
        outputs: of each head, >= 1; all heads exist from the start.

    Attributes:
        head: number of the head in use, 0 at first.

    Raises:
        ValueError: if there is no head, or a size is below 1.

    Example:
        >>> import torch
        >>> from vogn.continual import MultiHead, select_head
        >>> model = MultiHead(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()), 8, [2, 3])
        >>> select_head(model, 1)
        >>> model(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, body: nn.Module, features: int, outputs: Sequence[int]) -> None:
        super().__init__()
        if features < 1 or not outputs or min(outputs) < 1:
            raise ValueError(f"features={features} and outputs={list(outputs)} must be at least 1, of one head or more")
        self.body = body
        self.heads = nn.ModuleList(nn.Linear(features, count) for count in outputs)
        self.head = 0

    def forward(self, x: Tensor) -> Tensor:
        """``(N, ...)`` to the outputs ``(N, outputs[head])`` of the head in use."""
        return self.heads[self.head](self.body(x))


def select_head(model: nn.Module, head: int) -> None:
    """Use this head in every :class:`MultiHead` of the model; a model without one has a single head, 0.

    Raises:
        ValueError: if there is no such head.
    """
    found = [module for module in model.modules() if isinstance(module, MultiHead)]
    if not found and head != 0:
        raise ValueError(
            f"a task asks for head {head}, but {type(model).__name__} has one only: wrap its body in "
            "vogn.continual.MultiHead, or make tasks with scenario='domain'"
        )
    for module in found:
        if not 0 <= head < len(module.heads):
            raise ValueError(f"there is no head {head}: the model has {len(module.heads)}, from 0")
        module.head = head


def selected_head(model: nn.Module) -> int:
    """The head in use; 0 for a model without heads."""
    return next((module.head for module in model.modules() if isinstance(module, MultiHead)), 0)


@contextmanager
def evaluating(model: nn.Module, head: int) -> Iterator[None]:
    """Evaluation mode with this head; modes and head come back."""
    modes, before = {module: module.training for module in model.modules()}, selected_head(model)
    try:
        model.eval()
        select_head(model, head)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        select_head(model, before)
