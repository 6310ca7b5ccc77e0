"""Processes that compute different things and must succeed or fail together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vogn.distributed.replicas import Replicas


class _FailedElsewhere(BaseException):
    """Another process has failed; carries what is to be raised here. No handler of ordinary errors may stop it."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Unanimity:
    """Sections in which an error of one process is raised by all.

    Every meeting of the processes is one and the same collective, so that a process that has failed meets the others
    wherever they are.

    Args:
        replicas: the processes.
        device: where numbers are exchanged.
    """

    def __init__(self, replicas: Replicas, device: torch.device) -> None:
        self._replicas, self._device = replicas, device

    @contextmanager
    def section(self) -> Iterator[None]:
        """Inside, processes communicate through :meth:`total` alone.

        Raises:
            Exception: on all processes, the error of the first that failed.
        """
        try:
            yield
        except _FailedElsewhere as failure:
            raise failure.error from None
        except Exception as error:
            try:
                self._meet(None, error)
            except _FailedElsewhere as failure:
                raise failure.error from error
            raise
        else:
            try:
                self._meet(None, None)
            except _FailedElsewhere as failure:
                raise failure.error from None

    def total(self, number: Tensor) -> Tensor:
        """Sum of everybody's number, in double precision."""
        return self._meet(number, None)

    def _meet(self, number: Tensor | None, error: Exception | None) -> Tensor:
        message = torch.zeros(2, dtype=torch.float64, device=self._device)
        message[0] = float(error is not None)
        if number is not None:
            message[1] = number
        self._replicas.all_reduce(message)
        if not bool(message[0]):
            return message[1]
        errors = self._replicas.all_gather_objects(None if error is None else (type(error), str(error)))
        first = next(rank for rank, found in enumerate(errors) if found is not None)
        if first == self._replicas.rank:
            return message[1]  # the section raises it
        raise _FailedElsewhere(_again(*errors[first]))


def _again(kind: type[Exception], text: str) -> Exception:
    try:
        return kind(text)
    except TypeError:
        return RuntimeError(f"{kind.__name__}: {text}")
