"""Gradients of this process alone, where ``.grad`` is an average over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


class LocalGradients:
    """Sums of what reaches each parameter in the backward passes between :meth:`attach` and :meth:`detach`.

    ``DistributedDataParallel`` averages after a gradient has reached its parameter, so these are not averaged.

    Args:
        parameters: leaf tensors; those that need no gradient are left out.
        ignore: whether a backward that is running should not count.
    """

    def __init__(self, parameters: Iterable[Tensor], ignore: Callable[[], bool]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._ignore = ignore
        self._sums: dict[Tensor, Tensor] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Start anew."""
        self.detach()
        for parameter in self._parameters:
            self._handles.append(parameter.register_hook(self._hook(parameter)))

    def detach(self) -> None:
        """Stop, and forget everything."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.reset()

    def reset(self) -> None:
        """Forget what has come so far."""
        self._sums.clear()

    def get(self, parameter: Tensor) -> Tensor | None:
        """The sum of a parameter's gradients, or ``None`` if none has come."""
        return self._sums.get(parameter)

    def _hook(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if self._ignore():
                return
            old = self._sums.get(parameter)
            # a copy: what autograd hands over may become the parameter's .grad and be averaged in place
            self._sums[parameter] = grad.detach().clone() if old is None else old + grad.detach()

        return hook
