"""Positions that are looked up once for all examples: broadcasting adds them to every example.

Their gradient would come summed over the examples. Expanded right after the look-up, it comes apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError


class Lookups:
    """The look-ups of one context, in the order of the forward pass."""

    def __init__(self) -> None:
        self._last: tuple[int, ...] = ()
        """Shape of the last index that belongs to examples: the words ``(N, T)``."""

    def forget(self) -> None:
        """The context is over."""
        self._last = ()

    def spread(self, name: str, saved: tuple[Tensor, ...], output: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Give every example its own copy of positions ``(1, T)`` that are looked up after words ``(N, T)``.

        Args:
            name: of the table, for messages.
            saved: what the layer's rule keeps from forward; the index comes first.
            output: what was looked up; bags, which sum over positions, are left alone.

        Returns:
            ``saved`` and ``output``, expanded where that applies.

        Raises:
            UnsupportedObservationError: for positions ``(T,)`` where ``T = N``, which look like one index per example.
        """
        (index, *_), last = saved, self._last
        if output.ndim != index.ndim + 1:
            return saved, output
        if index.ndim == 2 and index.shape[0] == 1 and len(last) == 2 and last[0] > 1 and last[1] == index.shape[1]:
            saved = tuple(tensor.expand(last[0], *tensor.shape[1:]) for tensor in saved)
            return saved, output.expand(last[0], *output.shape[1:])
        doubtful = index.ndim == 1 and last == (len(index), len(index)) and not torch.compiler.is_compiling()
        if doubtful and torch.equal(index, torch.arange(len(index), dtype=index.dtype, device=index.device)):
            raise UnsupportedObservationError(
                f"layer {name!r} looks up 0, 1, ..., {len(index) - 1}: positions that all examples share have no "
                "gradient per example. Give them for each: torch.arange(T).expand(N, -1)"
            )
        self._last = tuple(index.shape)
        return saved, output
