"""A model, a loss and one batch as a function of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from vogn.capture.taps import muted
from vogn.distributed.replicas import inner_module
from vogn.errors import UnsupportedObservationError


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

    @property
    def count(self) -> int:
        """Number of examples: the length of the targets."""
        return len(self._targets)

    def hessian(
        self, parameters: Sequence[nn.Parameter], examples: Tensor | None = None
    ) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """``v -> H v`` with the Hessian of the loss at the weights that are in the model, by a double backward.

        Gradients and buffers stay as they are. The graph lives as long as the function that is returned.

        Args:
            parameters: what is differentiated by; a parameter that the loss does not see has zeros.
            examples: places ``(n,)`` of the examples in the batch whose mean loss is meant; ``None`` for all. Every
                tensor among the inputs is then indexed along its first dimension.

        Raises:
            UnsupportedObservationError: if the model cannot be differentiated twice.
        """
        inputs, targets = self._inputs, self._targets
        if examples is not None:
            inputs = tree_map(lambda leaf: leaf[examples] if isinstance(leaf, Tensor) and leaf.ndim else leaf, inputs)
            targets = targets[examples]
        model = inner_module(self.model)  # a wrapper would take this pass for one of the training loop
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        along = list(parameters)
        with torch.enable_grad(), muted(), self._frozen_randomness(), _twice():
            loss = self._loss(functional_call(model, buffers, inputs), targets)
            found = torch.autograd.grad(loss, along, create_graph=True, allow_unused=True)
        curved = [k for k, gradient in enumerate(found) if gradient is not None and gradient.requires_grad]
        gradients = [gradient for gradient in found if gradient is not None and gradient.requires_grad]

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            if not curved:
                return [torch.zeros_like(parameter) for parameter in along]
            with torch.enable_grad(), muted(), _twice():
                towards = [v[k].to(gradient.dtype) for k, gradient in zip(curved, gradients, strict=True)]
                second = torch.autograd.grad(gradients, along, towards, retain_graph=True, allow_unused=True)
            pairs = zip(along, second, strict=True)
            return [torch.zeros_like(parameter) if part is None else part.detach() for parameter, part in pairs]

        return product

    @contextmanager
    def _frozen_randomness(self) -> Iterator[None]:
        with torch.random.fork_rng(self._devices):
            torch.manual_seed(self._seed)
            yield


@contextmanager
def _twice() -> Iterator[None]:
    """Says what to do where something in the model cannot be differentiated twice."""
    try:
        yield
    except RuntimeError as error:
        if "double backward" in str(error) or "not implemented" in str(error):
            raise UnsupportedObservationError(
                f"products with the Hessian differentiate twice, but {error} Leave the model uncompiled; fused "
                "attention has a differentiable twin, torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            ) from error
        raise
