"""Where the examples of a sampled context stand in the data set."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError


class Places:
    """The places of the examples of one context, taken by its backward passes in turn.

    Args:
        given: place of every example, integers ``(n,)``, in the order of the backward passes; ``None`` counts upwards
            from ``start``.
        start: first place that is counted.
        stride: distance of two places that are counted.
    """

    def __init__(self, given: Tensor | None = None, *, start: int = 0, stride: int = 1) -> None:
        if given is not None and (given.ndim != 1 or given.is_floating_point() or given.is_complex()):
            raise ValueError(
                f"indices must be whole numbers of shape (examples,), got {given.dtype} of shape {tuple(given.shape)}"
            )
        low, high = given.aminmax() if given is not None and given.numel() else (0, -1)
        if int(low) < 0:
            raise ValueError(f"indices are places in the data set, counted from 0; got {int(low)}")
        self.given = given
        self._limit = int(high) + 1
        self.start, self.stride = start, stride
        self.done = 0
        """Examples of the backward passes that have ended."""
        self._taken = 0
        self._cut: tuple[int, int, Tensor] | None = None

    @property
    def limit(self) -> int:
        """A number that no place of an ended or the present backward pass reaches."""
        return self._limit if self.given is not None else self.start + self.stride * (self.done + self._taken)

    def take(self, count: int, device: torch.device) -> Tensor:
        """The places of the ``count`` examples of the present backward pass, ``(count,)``, int64.

        Raises:
            UnsupportedObservationError: if fewer are left.
        """
        self._taken = max(self._taken, count)
        stop = self.done + count
        if self.given is None:
            return self.start + self.stride * torch.arange(self.done, stop, device=device)
        if stop > len(self.given):
            raise UnsupportedObservationError(
                f"indices has {len(self.given)} places, but backward has come to example {stop}: give one for every "
                "example of the context, in the order of the backward passes"
            )
        if self._cut is None or self._cut[:2] != (self.done, stop) or self._cut[2].device != device:
            self._cut = (self.done, stop, self.given[self.done : stop].to(device, torch.int64))
        return self._cut[2]

    def finish_pass(self) -> None:
        """A backward pass has ended."""
        self.done, self._taken = self.done + self._taken, 0

    def check(self) -> None:
        """All places belong to an example, if any does.

        Raises:
            UnsupportedObservationError: if some are left over: the examples cannot be told apart.
        """
        if self.given is not None and 0 < self.done < len(self.given):
            raise UnsupportedObservationError(
                f"indices has {len(self.given)} places, but backward saw {self.done} examples: give one for every "
                "example, and call backward once per micro-batch"
            )
