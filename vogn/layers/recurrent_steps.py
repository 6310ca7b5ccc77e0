"""The nonlinear part of one step of every recurrent network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor


class Cell(ABC):
    """The nonlinear part of one step.

    Class attributes:
        GATED: whether :meth:`step` returns a gate that multiplies the last third of the hidden map.
        REMEMBERS: whether there is a cell state beside the hidden state.
    """

    GATED: ClassVar[bool] = False
    REMEMBERS: ClassVar[bool] = False

    @abstractmethod
    def step(self, ih: Tensor, hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """``(hidden state, cell state, gates)`` after a step.

        Args:
            ih, hh: mapped input and mapped hidden state.
            state: the cell state where there is one, else the hidden state.
        """


class Elman(Cell):
    """``h' = f(ih + hh)``."""

    def __init__(self, nonlinearity: Callable[[Tensor], Tensor]) -> None:
        self.nonlinearity = nonlinearity

    def step(self, ih: Tensor, hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See :meth:`Cell.step`."""
        h = self.nonlinearity(ih + hh)
        return h, h, ()


class LongShortTermMemory(Cell):
    """``c' = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h' = sigmoid(o) tanh(c')`` with ``(i, f, g, o) = ih + hh``."""

    REMEMBERS = True

    def step(self, ih: Tensor, hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See :meth:`Cell.step`."""
        i, f, g, o = (ih + hh).chunk(4, -1)
        c = torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c, ()


class GatedRecurrentUnit(Cell):
    """``n = tanh(ih_n + r hh_n)``, ``h' = (1 - z) n + z h``."""

    GATED = True

    def step(self, ih: Tensor, hh: Tensor, state: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See :meth:`Cell.step`."""
        ih_r, ih_z, ih_n = ih.chunk(3, -1)
        hh_r, hh_z, hh_n = hh.chunk(3, -1)
        r, z = torch.sigmoid(ih_r + hh_r), torch.sigmoid(ih_z + hh_z)
        n = torch.tanh(ih_n + r * hh_n)
        h = (1 - z) * n + z * state
        return h, h, (r.detach(),)


CELLS: dict[str, Cell] = {
    "RNN_TANH": Elman(torch.tanh),
    "RNN_RELU": Elman(torch.relu),
    "LSTM": LongShortTermMemory(),
    "GRU": GatedRecurrentUnit(),
}
"""By the ``mode`` of ``nn.RNNBase``."""
