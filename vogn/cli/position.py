"""How far a run has come."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class RunPosition:
    """How far a run has come, whatever it learns.

    Args:
        epoch: completed epochs.
        batch: completed batches of the epoch that has begun.
        seen: examples of that epoch so far.
        loss_sum: sum of their losses.
        seconds: training time of that epoch so far.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0

    def count(self, outputs: Tensor, targets: Tensor, loss: float) -> None:
        """Take in a batch: its outputs under the weights that were trained on it, and its mean loss."""
        self.batch += 1
        self.seen += len(targets)
        self.loss_sum += loss * len(targets)

    def check(self) -> None:
        """Raise ``ValueError`` for a position that no run can have."""
        counts = self._counts()
        if not all(type(count) is int and count >= 0 for count in counts) or (self.seen == 0) != (self.batch == 0):
            raise ValueError(f"no run has the position {self}")

    def _counts(self) -> tuple[int, ...]:
        return (self.epoch, self.batch, self.seen)


@dataclass
class Position(RunPosition):
    """How far the training of a classifier has come.

    Args:
        correct: how many examples of the epoch were classified correctly.
        epoch, batch, seen, loss_sum, seconds: see :class:`RunPosition`.
    """

    correct: int = 0

    def count(self, outputs: Tensor, targets: Tensor, loss: float) -> None:
        """See :class:`RunPosition`."""
        super().count(outputs, targets, loss)
        self.correct += int((outputs.argmax(dim=1) == targets).sum())

    def _counts(self) -> tuple[int, ...]:
        return (*super()._counts(), self.correct)


@dataclass
class RealPosition(RunPosition):
    """How far the training of a regression has come.

    Args:
        squares: sum of the squared errors of the epoch, in standardised targets.
        epoch, batch, seen, loss_sum, seconds: see :class:`RunPosition`.
    """

    squares: float = 0.0

    def count(self, outputs: Tensor, targets: Tensor, loss: float) -> None:
        """See :class:`RunPosition`."""
        super().count(outputs, targets, loss)
        self.squares += float((outputs.double() - targets.double()).square().sum())
