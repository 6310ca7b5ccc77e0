"""A model, a loss and one batch as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Objective:
    """The loss of one batch, evaluated as often as a method needs it: the closure for steps that compare losses.

    ``opt.step(Objective(model, likelihood, x, y))`` does what the loop of the documentation does. All evaluations of
    one objective see the same random numbers (dropout masks), drawn from the global random state where it is made.

    Args:
        model: the model.
        loss: ``loss(outputs, targets)``, the mean over the batch: one of :mod:`vogn.likelihoods` or any function.
        inputs: what the model is called with; a tuple is unpacked.
        targets: what the loss gets beside the outputs.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Linear(3, 1)
        >>> x, y = torch.randn(20, 3), torch.randn(20, 1)
        >>> opt = vogn.SMW(model, ess=20, adapt_damping=True, variational=False)
        >>> objective = vogn.Objective(model, vogn.likelihoods.Gaussian(noise=0.5), x, y)
        >>> before, _, after = objective.loss(), opt.step(objective), objective.loss()
        >>> bool(after < before)
        True
    """

    def __init__(self, model: nn.Module, loss: Callable[[Any, Tensor], Tensor], inputs: Any, targets: Tensor) -> None:
        self.model = model
        self._loss = loss
        self._inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self._targets = targets
        self._seed = int(torch.randint(2**62, ()))
        self._devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})

    def __call__(self) -> Tensor:
        """Clear the gradients, compute the loss and its gradient; returns the loss, a scalar."""
        self.model.zero_grad()
        with self._frozen_randomness():
            loss = self._loss(self.model(*self._inputs), self._targets)
            loss.backward()
        return loss.detach()

    @torch.no_grad()
    def loss(self) -> Tensor:
        """The loss at the weights that are in the model, a scalar; gradients and buffers stay as they are."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self._frozen_randomness():
            return self._loss(functional_call(self.model, buffers, self._inputs), self._targets)

    @contextmanager
    def _frozen_randomness(self) -> Iterator[None]:
        with torch.random.fork_rng(self._devices):
            torch.manual_seed(self._seed)
            yield
